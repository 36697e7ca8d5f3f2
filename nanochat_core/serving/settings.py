"""What a server is told when it starts, and what it takes from a request."""

from pathlib import Path

from pydantic import Field, SecretStr

from nanochat_core.config.base import Auto, Config
from nanochat_core.config.execution import Count, Device


class Limits(Config):
    """The most that one request may ask for.

    Messages, characters, temperature, top-k and tokens are those of the reference web server
    (karpathy/nanochat, scripts/chat_web.py, commit 2ea461d, "Abuse prevention limits"); it clamps
    nothing either, but refuses. The size of a body is ours: 32,000 characters as JSON escapes (12
    bytes each at worst), and room for 500 messages.
    """

    max_messages: int = 500
    max_message_characters: int = 8_000
    max_total_characters: int = 32_000
    max_temperature: float = 2.0
    max_top_k: int = 200
    max_tokens: int = 4_096
    max_prompt_tokens: int = Field(32_000, description="ids in all prompts of one request")
    max_choices: int = Field(32, description="replies to one request: prompts times n")
    max_top_logprobs: int = Field(20, description="of chat; completions take 5, as OpenAI's do")
    max_stop_strings: int = 4
    max_stop_characters: int = Field(200, description="each is looked for after every token")
    max_body_bytes: int = 1 << 20


class ServerSettings(Config):
    """One server: its models, its door, and what a request gets if it says nothing.

    Sampling defaults are those of `nanochat chat`, so that both give the same kind of answer.
    """

    model: str = Field(
        "", description="what a request without a name gets: a folder, an alias, station/fp; newest"
    )
    tokenizer: Path | None = Field(None, description="for a model whose folder has none")
    store: str | None = Field(None, description="URL of the store whose models are served")
    by_hand: Path | None = Field(None, description="folder of models that jobs made by hand")
    device: Device = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    num_rows: int = Field(32, ge=1, description="replies at once of one replica")
    max_waiting: int = Field(64, ge=1, description="replies that wait for a row, for each model")
    replicas: Count | Auto = Field("auto", description="of each model; auto: one for each GPU")
    max_loaded: int = Field(2, ge=1, description="models in memory; the longest unused one leaves")
    drain_seconds: float = Field(10.0, ge=0, description="for replies that run when it is stopped")
    api_key: SecretStr | None = Field(None, description="what clients must send; None: nothing")
    cors_origins: tuple[str, ...] = Field((), description="sites whose pages may ask; * for all")
    is_exact: bool = Field(False, description="a reply's bits depend on no other reply; slower")
    temperature: float = 0.6
    top_k: int = 50
    max_tokens: int = 512
    limits: Limits = Limits()
