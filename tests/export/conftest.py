"""Where transformers puts the code of exports while tests run: not in anybody's home."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for it; importing what reads models takes seconds, so that it is done here."""
    from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel  # noqa: F401

    folder = tmp_path_factory.mktemp("hugging_face")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        yield
