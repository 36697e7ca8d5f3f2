"""Whether an exported model does what ours does: logits, and greedy tokens out of its cache.

Shapes: B prompts, T tokens, N new tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import torch

from nanochat_core.errors import ExportError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.model.loss import head_logits, soft_cap
from nanochat_core.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-4
"""Largest difference of two float32 logits: rounding, in another order of operations."""
NEW_TOKENS = 32
"""That each prompt is continued by."""
BEYOND_WINDOW = 1 / 8
"""Of `sequence_len`, how much longer than that the longest prompt is."""
SHORTEST = 4
MAX_ROWS = 16
BATCH_LOGITS = 2**26
"""Float32 logits that are compared at a time: 256 MiB, and as many of the other model."""
CHAT_FRAME = 4
"""Special tokens around the text of a prompt that asks."""

OnProgress = Callable[[int, str], None]


@dataclass(frozen=True)
class Comparison:
    """How near two models are to each other."""

    largest_difference: float
    """Of two logits."""
    near_ties: int
    """Tokens where both likeliest ones are nearer to each other than the tolerance, and the two
    models took different ones."""
    num_tokens: int
    """That were compared, greedily."""


def load_exported(folder: Path, device: torch.device | str) -> Any:
    """The model as transformers reads it from the folder, in float32; ExportError if it cannot."""
    transformers: Any = import_module("transformers")  # here: it takes seconds
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ExportError(
            f"transformers cannot load the export in {folder} ({type(error).__name__}: {error})"
        ) from error
    problems = {name: sorted(map(str, found)) for name, found in info.items() if found}
    if problems:
        raise ExportError(f"weights and modelling file of {folder} do not fit: {problems}")
    return model.to(device).eval()


def make_prompts(
    tokenizer: Tokenizer, shape: ModelConfig, count: int, seed: int = 0
) -> list[list[int]]:
    """Prompts of all lengths, the first a lonely bos, most short, the last beyond the windows.

    Tokens are drawn from the whole vocabulary; every other prompt is a question in a chat.
    """
    rng = Random(seed)
    longest = shape.sequence_len + math.ceil(shape.sequence_len * BEYOND_WINDOW)
    prompts = []
    for number in range(count):
        growth = (longest / SHORTEST) ** (number / max(count - 1, 1))
        length = round(SHORTEST * growth) if number else 1
        body = rng.choices(range(len(tokenizer.ranks)), k=length)
        prompts.append(
            _question(tokenizer, body[CHAT_FRAME:])
            if number % 2 and length > CHAT_FRAME
            else [tokenizer.bos_id, *body[1:]]
        )
    return prompts


def compare_models(
    ours: GPT, theirs: Any, prompts: Sequence[Sequence[int]], on_progress: OnProgress
) -> Comparison:
    """Compare every prompt twice: all its logits at once, and tokens that follow it one by one.

    Raises ExportError with the first thing that differs.
    """
    difference, near_ties, done = 0.0, 0, 0
    with torch.inference_mode():
        for batch in batches(prompts, ours.config.vocab_size):
            difference = max(difference, logit_difference(ours, theirs, batch))
            near_ties += count_near_ties(ours, batch, continue_greedily(theirs, batch))
            done += len(batch)
            on_progress(done, f"{done:,} of {len(prompts):,} prompts agree")
    return Comparison(difference, near_ties, done * NEW_TOKENS)


def batches(prompts: Sequence[Sequence[int]], vocab_size: int) -> Iterator[list[Sequence[int]]]:
    """The prompts in the order of their lengths, as many at once as memory allows."""
    batch: list[Sequence[int]] = []
    for prompt in sorted(prompts, key=len):
        size = (len(batch) + 1) * (len(prompt) + NEW_TOKENS) * vocab_size
        if batch and (len(batch) == MAX_ROWS or size > BATCH_LOGITS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def logit_difference(ours: GPT, theirs: Any, batch: Sequence[Sequence[int]]) -> float:
    """The largest difference of two logits, with padding on the right."""
    tokens_BT, mask_BT = _padded(batch, ours.device, on_left=False)
    ours_BTV = ours(tokens_BT)
    theirs_BTV = theirs(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    if theirs_BTV.shape != ours_BTV.shape:
        raise ExportError(
            f"the exported model gives logits of the shape {tuple(theirs_BTV.shape)}, ours "
            f"{tuple(ours_BTV.shape)}"
        )
    apart_BT = (ours_BTV - theirs_BTV).abs().amax(dim=-1).where(mask_BT.bool(), 0.0)
    largest = float(apart_BT.max())
    if not largest <= TOLERANCE:  # NaN is refused, too
        row, place = divmod(int(apart_BT.argmax()), apart_BT.size(1))
        raise ExportError(
            f"the exported model's logits are not ours: after {place + 1:,} tokens of a prompt of "
            f"{len(batch[row]):,} they differ by {largest:.3g}, allowed is {TOLERANCE:g}"
        )
    return largest


def continue_greedily(theirs: Any, batch: Sequence[Sequence[int]]) -> torch.Tensor:
    """Tokens (B, N) that the exported model generates, with padding on the left."""
    config: Any = import_module("transformers").GenerationConfig
    tokens_BT, mask_BT = _padded(batch, theirs.device, on_left=True)
    # Its own settings would end at a stop token.
    theirs.generation_config = config(pad_token_id=0)
    greedy = config(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    generated: torch.Tensor = theirs.generate(
        tokens_BT, generation_config=greedy, attention_mask=mask_BT, calculator=False
    )
    return generated[:, tokens_BT.size(1) :]


def count_near_ties(ours: GPT, batch: Sequence[Sequence[int]], new_BN: torch.Tensor) -> int:
    """How many of the tokens are only nearly our model's likeliest; ExportError if one is not that.

    Each is judged after those before it, so that one near tie does not hide what follows. With
    none, the tokens are those that our own model generates.
    """
    whole = [[*prompt, *new] for prompt, new in zip(batch, new_BN.tolist(), strict=True)]
    tokens_BT, _ = _padded(whole, ours.device, on_left=False)
    ends_B1 = torch.tensor([[len(prompt)] for prompt in batch], device=ours.device)
    places_BN = ends_B1 - 1 + torch.arange(new_BN.size(1), device=ours.device)
    x_BTC = ours.hidden(tokens_BT)
    x_BNC = x_BTC.gather(1, places_BN[..., None].expand(-1, -1, x_BTC.size(-1)))
    logits_BNV = soft_cap(head_logits(x_BNC, ours.lm_head, ours.config.vocab_size))
    chosen_BN = logits_BNV.gather(-1, new_BN[..., None]).squeeze(-1)
    behind_BN = logits_BNV.amax(dim=-1) - chosen_BN
    wrong = (~(behind_BN < TOLERANCE)).nonzero().tolist()
    if wrong:
        row, number = wrong[0]
        raise ExportError(
            f"the exported model generates other tokens than ours: token {number + 1} after a "
            f"prompt of {len(batch[row]):,} is {int(new_BN[row, number])}, ours is "
            f"{int(logits_BNV[row, number].argmax())}, likelier by a logit of "
            f"{float(behind_BN[row, number]):.3g}"
        )
    return int((logits_BNV.argmax(dim=-1) != new_BN).sum())


def _question(tokenizer: Tokenizer, body: Sequence[int]) -> list[int]:
    start, end, answer = (
        tokenizer.special_id(name) for name in ("user_start", "user_end", "assistant_start")
    )
    return [tokenizer.bos_id, start, *body, end, answer]


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device | str, *, on_left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T) with zeros where a row has none, and which are not such padding."""
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    pairs = list(zip(rows, fill, strict=True))
    tokens = [[*none, *row] if on_left else [*row, *none] for row, none in pairs]
    mask = [
        [0] * len(none) + [1] * len(row) if on_left else [1] * len(row) + [0] * len(none)
        for row, none in pairs
    ]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
