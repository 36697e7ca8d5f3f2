"""One prompt and its reply while it grows."""

from collections import deque
from dataclasses import dataclass, field

from nanochat_core.inference.sampler import Sampler
from nanochat_core.inference.tools import ToolCalls


@dataclass
class ActiveSequence:
    """Tokens of a prompt and a reply; `forced` ones come next, before anything is sampled.

    `is_sampled` says of each token of the reply whether the model picked it, or a tool made it.
    `is_stopped`: ended by a stop token, which is not part of the reply; `is_done`: by that, by
    `max_new_tokens` sampled ones, or by `max_length` in all.
    """

    prompt: list[int]
    sampler: Sampler
    tools: ToolCalls
    stop_tokens: frozenset[int]
    max_new_tokens: int
    max_length: int
    reply: list[int] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    num_sampled: int = 0
    is_stopped: bool = False

    @property
    def is_done(self) -> bool:
        """Whether no token follows."""
        is_full = len(self.prompt) + len(self.reply) >= self.max_length
        is_spent = self.num_sampled >= self.max_new_tokens and not self.forced
        return self.is_stopped or is_full or is_spent

    def append_forced(self) -> None:
        """Append the next token that a tool made."""
        self.reply.append(self.forced.popleft())
        self.is_sampled.append(False)

    def append_sampled(self, token: int) -> None:
        """Append a token of the model's, or stop at a stop token."""
        self.num_sampled += 1
        if token in self.stop_tokens:
            self.is_stopped = True
            return
        self.reply.append(token)
        self.is_sampled.append(True)
        self.forced.extend(self.tools.see(token))
