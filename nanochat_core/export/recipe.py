"""What an export is (torch-free): a folder for Hugging Face transformers, compared before use."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from nanochat_core.config.base import Recipe
from nanochat_core.errors import ConfigError

ExportDtype = Literal["float32", "bfloat16"]
PACKAGES = ("transformers", "tokenizers")
OLDEST_TRANSFORMERS, SANITIZING_TRANSFORMERS = "4.57.1", "5.23"
"""The oldest version that loaded exports when it was tried; the one that knows how to write control
tokens of a text as text, which the other does not."""


class ExportRecipe(Recipe):
    """The numbers of the exported weights, and how much is compared with ours."""

    dtype: ExportDtype = Field(
        "float32", description="float32: weights as they are; bfloat16: all rounded, half the size"
    )
    prompts: int = Field(100, ge=1, le=10_000, description="continued by both models")
    strings: int = Field(10_000, ge=1, description="encoded and decoded by both tokenizers")


def check_packages() -> None:
    """Raise ConfigError, before any work, where the packages that read an export are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"an export is compared with the model before it is published, for which "
            f"{' and '.join(missing)} must be installed: pip install 'transformers>=5' tokenizers"
        )


def package_versions() -> dict[str, str]:
    """Of the packages that an export was compared with; they must be installed."""
    return {name: version(name) for name in PACKAGES}
