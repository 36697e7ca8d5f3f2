"""What the station `report` computes (torch-free)."""

from pydantic import Field

from nanochat_core.config.base import Recipe


class ReportRecipe(Recipe):
    """A page about a run. Plots and times are records; scores, counts and samples the result."""

    num_samples: int = Field(
        4, ge=0, description="samples shown of the base model, of right and of wrong replies each"
    )
