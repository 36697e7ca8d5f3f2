"""What a server is told when it starts, and what it takes from a request."""

from pydantic import Field

from nanochat_core.config.base import Config


class Limits(Config):
    """The most that one request may ask for.

    Those of the reference web server (karpathy/nanochat, scripts/chat_web.py, commit 2ea461d,
    "Abuse prevention limits"); it clamps nothing either, but refuses. The size of a body is ours:
    32,000 characters as JSON escapes (12 bytes each at worst), and room for 500 messages.
    """

    max_messages: int = 500
    max_message_characters: int = 8_000
    max_total_characters: int = 32_000
    max_temperature: float = 2.0
    max_top_k: int = 200
    max_tokens: int = 4_096
    max_stop_strings: int = 4
    max_body_bytes: int = 1 << 20


class ServerSettings(Config):
    """One server: its model's public name, its door, and what a request gets if it says nothing.

    Sampling defaults are those of `nanochat chat`, so that both give the same kind of answer.
    """

    name: str = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    max_waiting: int = Field(default=16, ge=1)
    temperature: float = 0.6
    top_k: int = 50
    max_tokens: int = 512
    limits: Limits = Limits()
