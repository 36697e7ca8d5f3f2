"""What each process of the distributed tests does; results land in files for the tests to compare.

One process start costs seconds, so four processes run every scenario, in worlds of 4, 3, 2 and 1.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat_core.distributed import collectives
from nanochat_core.distributed.ranks import Ranks, init_ranks
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.muon_adamw import MuonAdamW

NUM_STEPS = 10
WORLDS = (4, 3, 2, 1)


class TinyModel(nn.Module):
    """Embedding rows and matrices that no world size above 1 divides all of."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.wte = nn.Embedding(50, 24)
        self.up = nn.ModuleList(nn.Linear(24, 48, bias=False) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(48, 24, bias=False) for _ in range(3))
        self.gate = nn.Linear(12, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.mix = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(24, 52, bias=False)
        self.wte.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens).float()
        for i in range(3):
            h = F.relu(self.up[i](F.rms_norm(x, (24,)))).square()
            x = x + self.mix[i] * self.down[i](h)
        # A gate for each half: one for both would have a gradient of rank one, and orthogonalising
        # that turns rounding into movement.
        gates = self.gate(x[..., :12]).sigmoid()
        x = x * gates.repeat_interleave(12, dim=-1)
        return self.head(F.rms_norm(x, (24,)) * self.scale)


def make(dtype: torch.dtype, ranks: Ranks, reduction: str) -> tuple[TinyModel, MuonAdamW]:
    model = TinyModel(dtype)
    named = dict(model.named_parameters())
    is_matrix = {n: n.startswith(("up", "down", "gate")) for n in named}
    groups = [
        ParamGroup("wte", "adamw", (("wte.weight", named["wte.weight"]),), 0.03, beta2=0.995),
        ParamGroup("head", "adamw", (("head.weight", named["head.weight"]),), 0.01, beta2=0.96),
        ParamGroup("scalars", "adamw", tuple((n, named[n]) for n in ("scale", "mix")), 0.01),
        ParamGroup(
            "matrices",
            "muon",
            tuple((n, p) for n, p in named.items() if is_matrix[n]),
            0.02,
            beta2=0.9,
            weight_decay=0.1,
        ),
    ]
    optimizer = MuonAdamW(groups, ranks, compute_dtype=dtype, reduction=reduction)  # type: ignore[arg-type]
    return model, optimizer


def train(model: TinyModel, optimizer: MuonAdamW, ranks: Ranks, steps: range, micros: int) -> None:
    """Take steps of `micros` micro-batches numbered over all ranks, each of (4, 8) tokens."""
    own = micros // ranks.world_size
    for t in steps:
        gradients = GradientSum(optimizer.params)
        for micro in range(ranks.rank * own, (ranks.rank + 1) * own):
            generator = torch.Generator().manual_seed(1000 * t + micro)
            tokens = torch.randint(50, (4, 9), generator=generator)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / micros
            loss.backward()
            gradients.add()
        gradients.total()
        optimizer.step(lr_multiplier=1 - t / 20, momentum=0.9, weight_decay_multiplier=1.0)
        optimizer.zero_grad()


def save(path: Path, model: TinyModel, ranks: Ranks) -> None:
    """Every rank checks in with its weights, so that the tests see that they agree."""
    save_file(dict(model.state_dict()), path.with_name(f"{path.name}-{ranks.rank}.safetensors"))


def run_modes(ranks: Ranks, folder: Path) -> None:
    micros = 3 if ranks.world_size == 3 else 4
    for dtype, reduction in (
        (torch.float32, "exact"),
        (torch.float32, "fast"),
        (torch.bfloat16, "exact"),
    ):
        name = f"{reduction}-{str(dtype).removeprefix('torch.')}"
        model, optimizer = make(dtype, ranks, reduction)
        train(model, optimizer, ranks, range(NUM_STEPS), micros)
        save(folder / f"{name}-{micros}on{ranks.world_size}", model, ranks)
        if ranks.world_size == 1:
            model, optimizer = make(dtype, ranks, reduction)
            train(model, optimizer, ranks, range(NUM_STEPS), 3)
            save(folder / f"{name}-3on1", model, ranks)


def save_half_way(ranks: Ranks, folder: Path) -> None:
    model, optimizer = make(torch.bfloat16, ranks, "exact")
    train(model, optimizer, ranks, range(5), 4)
    save(folder / f"half-{ranks.world_size}", model, ranks)
    shards = optimizer.state_shards()
    tensors = {f"{s.name}@{s.start}": s.tensor.contiguous() for s in shards}
    save_file(tensors, folder / f"state-{ranks.world_size}-{ranks.rank}.safetensors")
    shapes = {name: list(shape) for name, shape in optimizer.state_names_and_shapes().items()}
    (folder / "shapes.json").write_text(json.dumps(shapes))


def resume(ranks: Ranks, folder: Path, saved_by: int) -> None:
    whole = joined_state(folder, saved_by)
    model, optimizer = make(torch.bfloat16, ranks, "exact")
    model.load_state_dict(load_file(folder / f"half-{saved_by}-0.safetensors"))
    optimizer.load_state(lambda name, start, stop: whole[name][start:stop])
    optimizer.steps = 5
    train(model, optimizer, ranks, range(5, NUM_STEPS), 4)
    save(folder / f"resumed-{saved_by}to{ranks.world_size}", model, ranks)


def joined_state(folder: Path, saved_by: int) -> dict[str, Tensor]:
    """The rows of all ranks put together, in the order of their starts."""
    parts: dict[str, dict[int, Tensor]] = {}
    for rank in range(saved_by):
        for key, tensor in load_file(folder / f"state-{saved_by}-{rank}.safetensors").items():
            name, start = key.split("@")
            assert int(start) not in parts.setdefault(name, {}), f"{key} comes from two ranks"
            parts[name][int(start)] = tensor
    return {name: torch.cat([rows[i] for i in sorted(rows)]) for name, rows in parts.items()}


def check_collectives(ranks: Ranks, folder: Path) -> None:
    rank, world = ranks.rank, ranks.world_size
    rows = torch.arange(world * 2.0)[:, None] + 100 * rank
    results = {
        "any": [
            collectives.agree_any(rank == world - 1, ranks),
            collectives.agree_any(False, ranks),
        ],
        "texts": collectives.gather_texts("é" * rank, ranks),
        "numbers": collectives.sum_numbers([rank + 0.5, 1.0], ranks),
        "gather": collectives.all_gather(rows[:1], ranks).wait().flatten().tolist(),
        "scatter": collectives.reduce_scatter(rows, ranks).wait().flatten().tolist(),
        "exchange": collectives.all_to_all(rows, ranks).wait().flatten().tolist(),
        "max": collectives.all_reduce(torch.tensor([rank]), ranks, operation="max").wait().tolist(),
        "broadcast": collectives.broadcast(torch.tensor([rank + 7]), ranks).tolist(),
    }
    collectives.barrier(ranks)
    (folder / f"collectives-{world}-{rank}.json").write_text(json.dumps(results))


def in_world(world_size: int, rank: int, port: int, scenario: Callable[[Ranks], None]) -> None:
    environ = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ.update(environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = init_ranks("cpu", timeout_seconds=60)
    try:
        scenario(ranks)
    finally:
        ranks.close()


def main(rank: int, ports: list[int], folder: Path) -> None:
    """Run every scenario as `rank` of each world that has such a rank."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)

    def scenario(ranks: Ranks) -> None:
        check_collectives(ranks, folder)
        run_modes(ranks, folder)
        if ranks.world_size in (4, 2):
            save_half_way(ranks, folder)
        if ranks.world_size == 2:
            resume(ranks, folder, saved_by=4)
        if ranks.world_size == 1:
            resume(ranks, folder, saved_by=2)
            resume(ranks, folder, saved_by=4)

    def resume_on_four(ranks: Ranks) -> None:
        resume(ranks, folder, saved_by=2)

    for world_size, port in zip(WORLDS, ports, strict=False):
        if rank < world_size:
            in_world(world_size, rank, port, scenario)
    # Ranks 1 to 3 are early here; the rendezvous waits until rank 0 has done its part alone.
    in_world(4, rank, ports[-1], resume_on_four)
