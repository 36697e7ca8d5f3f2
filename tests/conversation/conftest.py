"""Facts of a model as small as the demo's."""

import pytest

from nanochat_core.conversation.identity import ModelFacts


@pytest.fixture
def facts() -> ModelFacts:
    return ModelFacts(
        name="nanochat",
        depth=2,
        num_parameters=1_179_690,
        n_embd=128,
        n_head=1,
        vocab_size=2048,
        sequence_len=256,
        data="the documentation of Python packages",
    )
