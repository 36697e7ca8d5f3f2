"""The optimizers of fine-tuning and RL, beside that of the base model: RECIPE section 6."""

from nanochat_core.optim.recipe import OptimizerRecipe
from nanochat_core.training.recipes import RlRecipe, SftRecipe


def sft_optimizer(base: OptimizerRecipe, recipe: SftRecipe) -> OptimizerRecipe:
    """The base model's unscaled rates for head, wte and matrices, and fixed ones for the rest.

    Value embeddings get a fraction of wte's rate. Muon decay is off; AdamW groups keep theirs.
    No scale of the base model's is inherited: `lr_scale` is the one that applies.
    """

    def at(group: str, lr: float) -> object:
        return getattr(base, group).model_copy(update={"lr": lr})

    return base.model_copy(
        update={
            "value_embeddings": at(
                "value_embeddings", base.wte.lr * recipe.value_embedding_lr_fraction
            ),
            "resid": at("resid", recipe.resid_lr),
            "x0": at("x0", recipe.x0_lr),
            "smear": at("smear", recipe.smear_lr),
            "matrices": base.matrices.model_copy(update={"weight_decay": 0.0}),
            "lr_scale": recipe.lr_scale,
            "scalar_lr_scale": 1.0,
        }
    )


def rl_optimizer(base: OptimizerRecipe, recipe: RlRecipe) -> OptimizerRecipe:
    """The recipe's own rates; betas and decay of the AdamW groups are the base model's.

    Muon decay is off, and no scale of the base model's is inherited.
    """
    rates = {
        "head": recipe.head_lr,
        "wte": recipe.wte_lr,
        "value_embeddings": recipe.value_embedding_lr,
        "resid": recipe.resid_lr,
        "x0": recipe.x0_lr,
        "smear": recipe.smear_lr,
    }
    groups = {name: getattr(base, name).model_copy(update={"lr": lr}) for name, lr in rates.items()}
    matrices = base.matrices.model_copy(update={"lr": recipe.matrix_lr, "weight_decay": 0.0})
    scales = {"lr_scale": recipe.lr_scale, "scalar_lr_scale": 1.0}
    return base.model_copy(update={**groups, **scales, "matrices": matrices})
