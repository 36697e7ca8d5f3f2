"""What the engine is asked, and what it says after each step."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from nanochat_core.errors import ConfigError
from nanochat_core.inference.settings import GREEDY, SamplingSettings
from nanochat_core.inference.streaming import Piece

FinishReason: TypeAlias = Literal["stop", "length"]
"""`stop`: a stop token or stop text; `length`: no token more was allowed, or fitted."""

UNLIMITED = 1 << 62
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Request:
    """One prompt to be continued; equal requests get equal replies.

    `max_new_tokens` counts tokens that the model sampled, `max_reply_tokens` those of tools, too.
    `num_logprobs`: None for none, else how many of the likeliest tokens are told beside the one
    that was picked. `ignores_stop_tokens` is for measurements, which want replies of one length.
    Without `wants_text` outputs have no pieces, and stop texts are not looked for.
    """

    prompt: tuple[int, ...]
    settings: SamplingSettings = GREEDY
    max_new_tokens: int = 256
    max_reply_tokens: int = UNLIMITED
    stops: tuple[str, ...] = ()
    num_logprobs: int | None = None
    ignores_stop_tokens: bool = False
    wants_text: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_reply_tokens < 1:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens}, max_reply_tokens={self.max_reply_tokens}; "
                "give at least 1"
            )
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"num_logprobs={self.num_logprobs}; give 0 to {MAX_LOGPROBS}")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithm of the model's probability of a token, at temperature 1 and uncut.

    `top` holds the likeliest tokens, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Output(NamedTuple):
    """What one step did for one sequence.

    `token` is None when the step added none that belongs to the reply (a stop token, say).
    `pieces` is the text that can be shown now. `finish_reason` is set on a sequence's last output.
    """

    sequence_id: int
    token: int | None
    is_sampled: bool
    pieces: tuple[Piece, ...] = ()
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class EngineStats:
    """How full an engine is."""

    num_running: int
    """Sequences that have a row of the cache."""
    num_waiting: int
    num_rows: int
    """Rows of the cache."""
    num_cached_tokens: int
    """Tokens that running sequences have in the cache."""
    capacity_tokens: int
    """Tokens that the whole cache can hold."""
    num_prefix_tokens: int = 0
    """Prompt tokens so far that were not read again, since the cache had them."""
    num_prompt_tokens: int = 0
    """Prompt tokens so far."""
    num_sampled_tokens: int = 0
    """Tokens so far that the model sampled."""
    num_steps: int = 0
