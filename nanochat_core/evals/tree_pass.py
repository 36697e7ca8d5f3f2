"""A batch of trees of prompts (`shared_prefixes`) as one forward pass sees it.

Matrices are multiplied with the tokens as they are, without padding. Attention alone is padded: of
the trunks, causally, and of chosen tokens over what each one's own prompt holds.

Shapes: N tokens, B trees, P tokens of a trunk, Q of a tail, L places whose logits are wanted, M of
them in one tree, S trunk keys that chosen tokens see, U = S + Q, H query heads, G key heads, D head
dim, R rotation planes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nanochat_core.evals.shared_prefixes import Ints, Tree
from nanochat_core.model.attention import attend, repeat_heads

SIZE_MULTIPLE = 32
"""Of tokens that are multiplied with matrices together."""


class TreePass:
    """What `CachedModel` asks of a pass, and `attend_at` for a block that is read in few places."""

    last_B: torch.Tensor | None = None

    def __init__(
        self,
        trees: Sequence[Tree],
        *,
        nothing: int,
        device: torch.device,
        dtype: torch.dtype,
        bands: Mapping[int, torch.Tensor],
    ) -> None:
        self._device, self._bands = device, bands
        starts_B = np.cumsum([0, *(len(tree.tokens_N) for tree in trees)])[:-1]
        before_N = np.concatenate([_before(tree, nothing) for tree in trees])
        positions_N = np.concatenate([tree.positions_N for tree in trees])
        self.tokens_N = self._to(_filled(np.concatenate([tree.tokens_N for tree in trees])))
        self.before_N = self._to(_filled(before_N))
        self._positions_N = self._to(_filled(positions_N))
        self.shape = (1, len(self.tokens_N))
        places = [tree.places_L for tree in trees]
        self.places_L = self._to(_filled(_at(starts_B, places)))
        self._trunk_BP = self._to(_trunk_places(trees, starts_B))
        self._reads = ChosenTokens(trees, starts_B, places, device, dtype)
        tails = [np.arange(tree.num_trunk, len(tree.tokens_N)) for tree in trees]
        self._tails = None
        if any(map(len, tails)):
            self._tails = ChosenTokens(trees, starts_B, tails, device, dtype)
        self._slots_N = self._to(_filled(_slots(trees, self._trunk_BP.size(1), self._tails)))

    def _to(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The position of each token in its own prompts."""
        return cos_TR[self._positions_N][:, None], sin_TR[self._positions_N][:, None]

    def attend(
        self,
        block: int,  # noqa: ARG002  nothing is stored by block
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        *,
        window: int,
    ) -> torch.Tensor:
        """Trunks and tails, each in one call; (1, N, H, D)."""
        q_NHD, k_NGD, v_NGD = q_BTHD[0], k_BTGD[0], v_BTGD[0]
        trunk_BHPD = attend(
            *(x[self._trunk_BP].transpose(1, 2) for x in (q_NHD, k_NGD, v_NGD)),
            window=window,
            band=self._bands.get(window),
        )
        parts = [trunk_BHPD.transpose(1, 2).flatten(0, 1)]
        if self._tails is not None:
            tail_BQHD = self._tails.attend(q_NHD[self._tails.places_BM], k_NGD, v_NGD, window)
            parts.append(tail_BQHD.flatten(0, 1))
        return torch.cat(parts)[self._slots_N][None]

    def attend_at(
        self, q_LHD: torch.Tensor, k_NGD: torch.Tensor, v_NGD: torch.Tensor, *, window: int
    ) -> torch.Tensor:
        """Of the places whose logits are wanted alone, (L, H, D)."""
        reads = self._reads
        attended_BMHD = reads.attend(q_LHD[reads.order_BM], k_NGD, v_NGD, window)
        return attended_BMHD.flatten(0, 1)[reads.slots_L]


class ChosenTokens:
    """Some tokens of each tree, and what they see of its trunk and tail."""

    def __init__(
        self,
        trees: Sequence[Tree],
        starts_B: Ints,
        places: Sequence[Ints],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._device, self._dtype, self._starts_B = device, dtype, starts_B
        self._last_B1 = np.array([[tree.num_trunk - 1] for tree in trees])
        self.width, num_tail = max(map(len, places)), max(tree.num_tail for tree in trees)
        shape = len(trees), self.width
        self._is_one_BM = np.zeros(shape, dtype=np.bool_)
        self._forks_BM, self._positions_BM = np.zeros(shape, int), np.zeros(shape, int)
        self._sees_BMQ = np.zeros((*shape, num_tail), dtype=np.bool_)
        places_BM = np.tile(starts_B[:, None], self.width)
        self._tail_BQ = np.tile(starts_B[:, None], num_tail)
        self._positions_BQ = np.zeros(self._tail_BQ.shape, int)
        for row, (tree, chosen) in enumerate(zip(trees, places, strict=True)):
            self._choose(row, tree, chosen)
            places_BM[row, : len(chosen)] += chosen
        order_BM = np.maximum(np.cumsum(self._is_one_BM).reshape(shape) - 1, 0)
        self.order_BM = self._to(order_BM)
        """The number of each among all that are chosen."""
        self.places_BM = self._to(places_BM)
        self.slots_L = self._to(_filled(np.flatnonzero(self._is_one_BM)))
        """Where they are among the padded ones."""
        self._views: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _to(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def _choose(self, row: int, tree: Tree, chosen: Ints) -> None:
        """Note where these tokens of a tree are, and what is on their way."""
        here, tail = slice(len(chosen)), slice(tree.num_tail)
        in_tail = chosen >= tree.num_trunk
        numbers = chosen[in_tail] - tree.num_trunk
        self._is_one_BM[row, here] = True
        self._positions_BM[row, here] = tree.positions_N[chosen]
        self._forks_BM[row, here] = chosen + 1
        self._forks_BM[row, here][in_tail] = tree.forks_Q[numbers]
        self._sees_BMQ[row, here, tail][in_tail] = tree.sees_QQ[numbers]
        self._tail_BQ[row, tail] += np.arange(tree.num_trunk, len(tree.tokens_N))
        self._positions_BQ[row, tail] = tree.positions_N[tree.num_trunk :]

    def attend(
        self, q_BMHD: torch.Tensor, k_NGD: torch.Tensor, v_NGD: torch.Tensor, window: int
    ) -> torch.Tensor:
        """Each over itself and what is before it in its prompt, within the window; (B, M, H, D)."""
        if window not in self._views:
            self._views[window] = self._view(window)
        keys_BU, mask_B1MU = self._views[window]
        k_BHUD, v_BHUD = (
            repeat_heads(x[keys_BU].transpose(1, 2), q_BMHD.size(2)) for x in (k_NGD, v_NGD)
        )
        attended_BHMD = F.scaled_dot_product_attention(
            q_BMHD.transpose(1, 2), k_BHUD, v_BHUD, attn_mask=mask_B1MU
        )
        return attended_BHMD.transpose(1, 2)

    def _view(self, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of the keys (B, U), and what is added to the scores (B, 1, M, U)."""
        far = self._positions_BM.max() + 1
        first_B1 = np.where(self._is_one_BM, self._positions_BM, far).min(axis=1, keepdims=True)
        first_B1 = np.clip(first_B1 - window, 0, self._last_B1)
        num_keys = max(0, int((self._forks_BM.max(axis=1) - first_B1[:, 0]).max()))
        columns_BS = first_B1 + np.arange(num_keys)
        trunk_BS = self._starts_B[:, None] + np.minimum(columns_BS, self._last_B1)
        keys_BU = np.concatenate([trunk_BS, self._tail_BQ], axis=1)
        return self._to(keys_BU), self._mask(window, self._to(columns_BS)[:, None])[:, None]

    def _mask(self, window: int, columns_B1S: torch.Tensor) -> torch.Tensor:
        """(B, M, U), made on the device: it is larger than what it is made of."""
        positions_BM1 = self._to(self._positions_BM)[:, :, None]
        on_trunk_BMS = columns_B1S < self._to(self._forks_BM)[:, :, None]
        on_trunk_BMS &= columns_B1S >= positions_BM1 - window
        behind_BMQ = positions_BM1 - self._to(self._positions_BQ)[:, None]
        in_tail_BMQ = self._to(self._sees_BMQ) & (behind_BMQ <= window)
        is_seen_BMU = torch.cat([on_trunk_BMS, in_tail_BMQ], dim=2)
        # Padding sees everything, so that it is a number.
        is_seen_BMU |= self._to(~self._is_one_BM)[:, :, None]
        mask_BMU = torch.zeros(is_seen_BMU.shape, dtype=self._dtype, device=self._device)
        return mask_BMU.masked_fill_(~is_seen_BMU, float("-inf"))


def _filled(values: Ints) -> Ints:
    """With repetitions in the end, which nobody reads: fewer sizes of matrices.

    A CPU makes a kernel for each size in bfloat16 and keeps it: 700 examples on a model of two
    blocks took 800 MB, and take 230 MB with sizes in steps of 32.
    """
    return np.pad(values, (0, -len(values) % SIZE_MULTIPLE), mode="edge")


def _at(starts_B: Ints, places: Sequence[Ints]) -> Ints:
    shifted = [chosen + start for chosen, start in zip(places, starts_B, strict=True)]
    return np.concatenate(shifted)


def _before(tree: Tree, nothing: int) -> Ints:
    """The token before each one; `nothing` before the first of a prompt."""
    before_N = tree.tokens_N[tree.parents_N]
    return np.where(tree.parents_N < 0, nothing, before_N)


def _trunk_places(trees: Sequence[Tree], starts_B: Ints) -> Ints:
    """(B, P), padded on the right: that comes after everything that is read."""
    sizes_B1 = np.array([[tree.num_trunk] for tree in trees])
    columns_BP = np.minimum(np.arange(sizes_B1.max()), sizes_B1 - 1)
    places_BP: Ints = starts_B[:, None] + columns_BP
    return places_BP


def _slots(trees: Sequence[Tree], trunk_width: int, tails: ChosenTokens | None) -> Ints:
    """Where attention leaves what belongs to each token: trunks first, then tails, both padded."""
    first_tail, slots = len(trees) * trunk_width, []
    for row, tree in enumerate(trees):
        slots.append(row * trunk_width + np.arange(tree.num_trunk))
        if tails is not None:
            slots.append(first_tail + row * tails.width + np.arange(tree.num_tail))
    return np.concatenate(slots)
