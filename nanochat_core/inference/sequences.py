"""One request on its way through the engine."""

from collections import deque
from dataclasses import dataclass, field

from nanochat_core.inference.replies import Reply
from nanochat_core.inference.requests import FinishReason, Output, Request, TokenLogprob
from nanochat_core.inference.sampler import Sampler
from nanochat_core.inference.streaming import Piece
from nanochat_core.inference.tools import ToolCalls
from nanochat_core.tokenizer.tokenizer import Tokenizer


@dataclass(slots=True)
class ActiveSequence:
    """Tokens of a prompt and its reply; `forced` ones come next, before anything is sampled.

    `num_cached` of the tokens are in the cache. `is_sampled` says of each token of the reply
    whether the model picked it, or a tool made it. `finish_reason` is set when no token follows.
    """

    sequence_id: int
    request: Request
    sampler: Sampler
    tools: ToolCalls
    text: Reply | None
    stop_tokens: frozenset[int]
    max_length: int
    tokens: list[int]
    num_cached: int = 0
    is_sampled: list[bool] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    num_sampled: int = 0
    finish_reason: FinishReason | None = None

    @classmethod
    def start(
        cls,
        sequence_id: int,
        request: Request,
        tokenizer: Tokenizer,
        stop_tokens: frozenset[int],
        max_length: int,
    ) -> "ActiveSequence":
        """A sequence of which nothing is cached yet."""
        return cls(
            sequence_id=sequence_id,
            request=request,
            sampler=Sampler(request.settings),
            tools=ToolCalls(tokenizer),
            text=Reply(tokenizer, request.stops) if request.wants_text else None,
            stop_tokens=frozenset() if request.ignores_stop_tokens else stop_tokens,
            max_length=min(max_length, len(request.prompt) + request.max_reply_tokens),
            tokens=list(request.prompt),
        )

    @property
    def reply(self) -> list[int]:
        """The tokens of the reply so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def is_prefilled(self) -> bool:
        """Whether only the last token is not cached yet, and decoding can go on from it."""
        return self.num_cached >= len(self.request.prompt)

    @property
    def most_tokens(self) -> int:
        """How many tokens it may come to; what tools add is not counted."""
        return min(self.max_length, len(self.request.prompt) + self.request.max_new_tokens)

    def append_forced(self) -> Output:
        """Append the next token that a tool made."""
        token = self.forced.popleft()
        return self._append(token, is_sampled=False, logprob=None)

    def append_sampled(self, token: int, logprob: TokenLogprob | None = None) -> Output:
        """Append a token of the model's, or end at a stop token."""
        self.num_sampled += 1
        if token in self.stop_tokens:
            self.finish_reason = "stop"
            return self._output(None, is_sampled=True, logprob=None)
        self.forced.extend(self.tools.see(token))
        return self._append(token, is_sampled=True, logprob=logprob)

    def _append(self, token: int, *, is_sampled: bool, logprob: TokenLogprob | None) -> Output:
        self.tokens.append(token)
        self.is_sampled.append(is_sampled)
        is_spent = self.num_sampled >= self.request.max_new_tokens and not self.forced
        if is_spent or len(self.tokens) >= self.max_length:
            self.finish_reason = "length"
        return self._output(token, is_sampled=is_sampled, logprob=logprob)

    def _output(
        self, token: int | None, *, is_sampled: bool, logprob: TokenLogprob | None
    ) -> Output:
        pieces = () if self.text is None else self._shown(self.text, token)
        return Output(self.sequence_id, token, is_sampled, pieces, logprob, self.finish_reason)

    def _shown(self, text: Reply, token: int | None) -> tuple[Piece, ...]:
        pieces = () if token is None else text.feed(token)
        if text.is_stopped:
            self.finish_reason = "stop"
        return pieces if self.finish_reason is None else pieces + text.end()
