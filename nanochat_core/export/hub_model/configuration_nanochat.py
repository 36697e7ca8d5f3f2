"""The shape of a nanochat model (as nanochat-flows trains it), for transformers.

transformers has a `nanochat` of its own, which is an older and smaller architecture; so the model
type is another one.
"""

from typing import Any

from transformers import PretrainedConfig


class NanochatConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes and constants of one decoder-only Transformer; block indices are zero-based.

    `windows` says for each block how many keys before the query it sees, beside the query itself;
    `sequence_len` is the length of the rows that the model was trained on, and
    `max_position_embeddings` the longest input that it takes. Tables have `padded_vocab_size` rows,
    but there are logits of `vocab_size` tokens only.
    """

    model_type = "nanochat_flows"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the base class has it so

    def __init__(  # noqa: PLR0913 - transformers sets every field by name
        self,
        vocab_size: int = 32768,
        padded_vocab_size: int = 32768,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        num_key_value_heads: int = 6,
        head_dim: int = 128,
        sequence_len: int = 2048,
        max_position_embeddings: int = 20480,
        windows: list[int] | None = None,
        value_embedding_layers: list[int] | None = None,
        backout_layer: int | None = None,
        smear_channels: int = 24,
        value_gate_channels: int = 12,
        value_gate_scale: float = 3.0,
        qk_scale: float = 1.2,
        rope_theta: float = 100_000.0,
        rms_norm_eps: float = 2.0**-23,
        logit_cap: float = 15.0,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.padded_vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.sequence_len = sequence_len
        self.max_position_embeddings = max_position_embeddings
        self.windows = [sequence_len] * num_hidden_layers if windows is None else windows
        if value_embedding_layers is None:
            value_embedding_layers = list(range((num_hidden_layers - 1) % 2, num_hidden_layers, 2))
        self.value_embedding_layers = value_embedding_layers
        self.backout_layer = num_hidden_layers // 2 if backout_layer is None else backout_layer
        self.smear_channels = smear_channels
        self.value_gate_channels = value_gate_channels
        self.value_gate_scale = value_gate_scale
        self.qk_scale = qk_scale
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.logit_cap = logit_cap
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
