"""Which parameter belongs to which optimizer group, and at what rate. RECIPE section 2."""

from collections.abc import Iterable

import torch

from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.recipe import AdamWGroup, OptimizerRecipe

SMEAR_NAMES = ("smear_gate.weight", "smear_lambda", "backout_lambda")

NamedParameters = Iterable[tuple[str, torch.nn.Parameter]]


def build_groups(
    named_parameters: NamedParameters,
    recipe: OptimizerRecipe,
    *,
    batch_lr_scale: float,
    width_lr_scale: float,
    muon_weight_decay: float,
) -> list[ParamGroup]:
    """Split the parameters of a GPT into the six AdamW groups and Muon's matrices.

    Every rate is multiplied by `lr_scale`; all but smear's by `batch_lr_scale`; head, wte and
    value embeddings by `width_lr_scale`; resid, x0 and smear by `scalar_lr_scale`.
    """
    members = _sort_parameters(named_parameters)
    batched = recipe.lr_scale * batch_lr_scale
    scales = {
        "head": batched * width_lr_scale,
        "wte": batched * width_lr_scale,
        "value_embeddings": batched * width_lr_scale,
        "resid": batched * recipe.scalar_lr_scale,
        "x0": batched * recipe.scalar_lr_scale,
        "smear": recipe.lr_scale * recipe.scalar_lr_scale,
    }
    groups = [
        _adamw_group(name, members[name], getattr(recipe, name), scale)
        for name, scale in scales.items()
        if members[name]
    ]
    groups.append(
        ParamGroup(
            name="matrices",
            kind="muon",
            params=tuple(members["matrices"]),
            lr=recipe.matrices.lr * batched,
            beta1=0.0,
            beta2=recipe.matrices.beta2,
            eps=0.0,
            weight_decay=muon_weight_decay,
            polar_express_steps=recipe.matrices.polar_express_steps,
        )
    )
    return groups


def group_name(parameter: str) -> str:
    """The group that a parameter of GPT belongs to."""
    if parameter.startswith("blocks."):
        return "matrices"
    if parameter.startswith("value_embeddings."):
        return "value_embeddings"
    if parameter in SMEAR_NAMES:
        return "smear"
    names = {
        "lm_head.weight": "head",
        "wte.weight": "wte",
        "resid_lambdas": "resid",
        "x0_lambdas": "x0",
    }
    return names[parameter]


def _sort_parameters(
    named_parameters: NamedParameters,
) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
    names = ("head", "wte", "value_embeddings", "resid", "x0", "smear", "matrices")
    members: dict[str, list[tuple[str, torch.nn.Parameter]]] = {name: [] for name in names}
    for name, parameter in named_parameters:
        members[group_name(name)].append((name, parameter))
    return members


def _adamw_group(
    name: str,
    params: list[tuple[str, torch.nn.Parameter]],
    numbers: AdamWGroup,
    scale: float,
) -> ParamGroup:
    return ParamGroup(
        name=name,
        kind="adamw",
        params=tuple(params),
        lr=numbers.lr * scale,
        beta1=numbers.beta1,
        beta2=numbers.beta2,
        eps=numbers.eps,
        weight_decay=numbers.weight_decay,
    )
