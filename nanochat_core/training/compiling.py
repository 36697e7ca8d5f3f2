"""Which functions of training are compiled, and how much one compilation covers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from nanochat_core.model.gpt import EAGER, GPT, Regions
from nanochat_core.model.loss import summed_loss
from nanochat_core.training.step import LossFunction

Scope = Literal["blocks", "model"]
Trunk = Callable[[torch.Tensor], torch.Tensor]

MAX_GRAPHS = 128
"""Of one function: every kind of block at every input shape is a graph."""
INDUCTOR = "inductor"


def loss_function(
    model: GPT,
    *,
    compiled: bool,
    scope: Scope = "blocks",
    checkpoint_activations: bool = False,
) -> LossFunction:
    """The summed loss of a micro-batch; eager on mps, which has no compiler.

    With scope "blocks" a block is compiled once for all of its kind, so that a deep model takes no
    longer than a shallow one; with "model" the whole trunk is one graph. The head is on its own.
    """
    compiled = compiled and model.device.type != "mps"
    trunk = trunk_function(
        model, scope if compiled else None, checkpoint_activations=checkpoint_activations
    )

    def loss_sum(
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        token_weights_BT: torch.Tensor | None = None,
        /,
    ) -> torch.Tensor:
        return summed_loss(
            trunk(inputs_BT).flatten(0, 1),
            model.lm_head,
            targets_BT.flatten(),
            None if token_weights_BT is None else token_weights_BT.flatten(),
            vocab_size=model.config.vocab_size,
            compiled=compiled,
        )

    return loss_sum


def trunk_function(
    model: GPT,
    scope: Scope | None,
    *,
    checkpoint_activations: bool = False,
    compiler: str = INDUCTOR,
) -> Trunk:
    """`model.hidden`, compiled unless `scope` is None.

    With `checkpoint_activations` a block keeps its input alone and runs again in backward.
    """
    run = compiled_regions(compiler) if scope == "blocks" else EAGER
    if checkpoint_activations:
        # Nothing in a block draws random numbers.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        run = replace(run, block=partial(again, run.block))
    hidden = partial(model.hidden, run=run)
    return compile_region(hidden, compiler) if scope == "model" else hidden


def compiled_regions(compiler: str = INDUCTOR) -> Regions:
    """Each region of the trunk as a function that is compiled when first called."""
    return Regions(
        begin=compile_region(EAGER.begin, compiler),
        block=compile_region(EAGER.block, compiler),
        end=compile_region(EAGER.end, compiler),
    )


def compile_region(function: Callable[..., Any], compiler: str = INDUCTOR) -> Callable[..., Any]:
    """One graph for each kind of input; what cannot be one graph is an error, as is MAX_GRAPHS."""
    limit = max(MAX_GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = limit
    return torch.compile(function, dynamic=False, fullgraph=True, backend=compiler)
