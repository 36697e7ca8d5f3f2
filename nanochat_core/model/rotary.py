"""Rotary position embeddings, two-halves layout, rotation by -theta (arXiv:2104.09864).

Shapes: B batch, T positions, H heads, D head dim, R = D / 2 rotation planes.
"""

import torch

ROTARY_BASE = 100_000.0
MAX_LENGTH_FACTOR = 10
"""Tables reach this many times `sequence_len`."""


def rotary_tables(
    num_positions: int, head_dim: int, *, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, R) of `position * base^(-2i/D)`, computed in float32, then rounded.

    They are always computed on the CPU, so that every device and rank has the same bits.
    """
    planes_R = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    inv_freq_R = ROTARY_BASE ** (-planes_R / head_dim)
    positions_T = torch.arange(num_positions, dtype=torch.float32, device="cpu")
    angles_TR = torch.outer(positions_T, inv_freq_R)
    return angles_TR.cos().to(dtype), angles_TR.sin().to(dtype)


def rotate(x_BTHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys; the tables are (T, 1, R), or (B, T, 1, R) for rows that differ."""
    first, second = x_BTHD.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
