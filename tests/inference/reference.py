"""What the engine should have said, worked out anew: no cache, no batch, no chunks.

Logits come from one full forward pass over prompt and reply; tool calls, stop texts and limits are
replayed from the tokens by code that shares nothing with the engine but the calculator.

Shapes: T positions, V vocabulary.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch

from nanochat_core.inference.requests import FinishReason, Output, Request, TokenLogprob
from nanochat_core.inference.streaming import Piece
from nanochat_core.model.gpt import GPT
from nanochat_core.sandbox.calculator import calculate
from nanochat_core.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-4
"""Of logits, in float32."""
TOOL_KINDS = {"python_start": "python", "output_start": "python_output"}


@dataclass
class Observed:
    """Everything that an engine said of one request."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    is_cancelled: bool = False

    def add(self, output: Output) -> None:
        """Take in what one step said."""
        assert not self.is_cancelled, "a cancelled sequence is heard of again"
        assert self.finish_reason is None, "a finished sequence is heard of again"
        if output.token is not None:
            self.tokens.append(output.token)
            self.is_sampled.append(output.is_sampled)
            self.logprobs.append(output.logprob)
        self.pieces.extend(output.pieces)
        self.finish_reason = output.finish_reason

    @property
    def ids(self) -> list[int]:
        """Prompt and reply."""
        return [*self.request.prompt, *self.tokens]


class Reference:
    """Judges replies of one model; `counts` says how much there was to judge."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, max_length: int) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.stop_tokens = {tokenizer.bos_id, tokenizer.special_id("assistant_end")}
        self.counts: Counter[str] = Counter()

    def check(self, seen: Observed) -> None:
        """Fail where anything of a reply, whole or cancelled, is not as it should be."""
        self._check_ends(seen)
        self._check_pieces(seen)
        logits_TV = self._logits(seen)
        for i, (token, is_sampled) in enumerate(zip(seen.tokens, seen.is_sampled, strict=True)):
            if is_sampled:
                self._check_pick(seen.request, logits_TV[i], {token})
                self._check_logprob(seen.request, logits_TV[i], token, seen.logprobs[i])
        if self._is_ended_by_stop_token(seen):
            self.counts["stop tokens"] += 1
            self._check_pick(seen.request, logits_TV[len(seen.tokens)], self.stop_tokens)

    def _logits(self, seen: Observed) -> torch.Tensor:
        """Of each token of the reply and of the one after it, (reply + 1, V)."""
        with torch.inference_mode():
            logits_TV = self.model(torch.tensor([seen.ids]))[0]
        return logits_TV[len(seen.request.prompt) - 1 :]

    def _check_pick(self, request: Request, logits_V: torch.Tensor, allowed: set[int]) -> None:
        """One of these tokens is what the settings can give."""
        self.counts["picks"] += 1
        settings = request.settings
        (best, second), (token, _) = (part.tolist() for part in logits_V.topk(2))
        if best - second < TOLERANCE:
            self.counts["near ties"] += 1
        if settings.is_greedy:
            if token not in allowed:
                assert best - second < TOLERANCE, f"{allowed} picked, {token} is likelier: {best}"
                self.counts["other side of a near tie"] += 1
            return
        assert any(token in allowed for token in _candidates(logits_V, request)), (
            f"{allowed} picked: outside of top_k={settings.top_k}, top_p={settings.top_p}"
        )

    def _check_logprob(
        self, request: Request, logits_V: torch.Tensor, token: int, told: TokenLogprob | None
    ) -> None:
        if request.num_logprobs is None:
            assert told is None, "log-probabilities that nobody asked for"
            return
        assert told is not None, "no log-probability of a sampled token"
        assert told.token == token
        self.counts["log-probabilities"] += 1
        expected_V = logits_V.log_softmax(-1)
        worst = abs(told.logprob - float(expected_V[token]))
        assert len(told.top) == request.num_logprobs
        assert len({t for t, _ in told.top}) == len(told.top)
        best = expected_V.topk(max(request.num_logprobs, 1)).values.tolist()
        for (other, value), ranked in zip(told.top, best, strict=False):
            worst = max(worst, abs(value - float(expected_V[other])), abs(value - ranked))
        assert not math.isnan(worst)
        assert worst < TOLERANCE, f"a log-probability is off by {worst}"

    def _check_ends(self, seen: Observed) -> None:
        """The reply is as long as its limits and stops allow, and tool tokens are where due."""
        request, forced, num_sampled = seen.request, list[int](), 0
        replay = ToolReplay(self.tokenizer)
        for i, (token, is_sampled) in enumerate(zip(seen.tokens, seen.is_sampled, strict=True)):
            assert self._reason_after(request, seen.tokens[:i], num_sampled, forced) is None, (
                f"the reply goes on after its {i} tokens"
            )
            assert is_sampled == (not forced), f"token {i}: is_sampled={is_sampled}"
            if forced:
                assert token == forced.pop(0), f"token {i} is not what the tool said"
                self.counts["tool tokens"] += 1
                continue
            assert token not in self.stop_tokens or request.ignores_stop_tokens
            num_sampled += 1
            forced = replay.answer_to(token)
        reason = self._reason_after(request, seen.tokens, num_sampled, forced)
        if seen.is_cancelled:
            assert seen.finish_reason is None
            return
        expected = "stop" if self._is_ended_by_stop_token(seen) else reason
        assert seen.finish_reason == expected, f"{seen.finish_reason}, expected {expected}"
        if seen.finish_reason == "stop" and reason is None:
            assert not forced
            assert not request.ignores_stop_tokens

    def _reason_after(
        self, request: Request, tokens: list[int], num_sampled: int, forced: list[int]
    ) -> FinishReason | None:
        """Why nothing may follow these tokens, if so; stop tokens, not being in it, aside."""
        if self._stop_position(request, tokens) is not None:
            return "stop"
        if len(tokens) >= request.max_reply_tokens:
            return "length"
        if len(request.prompt) + len(tokens) >= self.max_length:
            return "length"
        return "length" if num_sampled >= request.max_new_tokens and not forced else None

    def _is_ended_by_stop_token(self, seen: Observed) -> bool:
        is_text = self._stop_position(seen.request, seen.tokens) is not None
        return seen.finish_reason == "stop" and not is_text

    def _stop_position(self, request: Request, tokens: list[int]) -> int | None:
        """Where in the visible text the stop text starts that is complete first."""
        if not request.stops or not request.wants_text:
            return None
        text = "".join(piece.text for piece in self.pieces_of(tokens) if piece.kind == "text")
        found = [(text.index(stop) + len(stop), stop) for stop in request.stops if stop in text]
        if not found:
            return None
        first = min(end for end, _ in found)
        return min(end - len(stop) for end, stop in found if end == first)

    def pieces_of(self, tokens: list[int]) -> list[Piece]:
        """The whole reply as text, code and output, each character with its kind."""
        kind, run, pieces = "text", b"", list[Piece]()
        opening = {self.tokenizer.special_id(name): kind for name, kind in TOOL_KINDS.items()}
        closing = {self.tokenizer.special_id(name) for name in ("python_end", "output_end")}
        for token in [*tokens, self.tokenizer.bos_id]:
            if not self.tokenizer.is_special(token):
                run += self.tokenizer.decode_bytes([token])
                continue
            pieces += [Piece(kind, letter) for letter in run.decode("utf-8", errors="replace")]
            run = b""
            kind = opening.get(token, "text" if token in closing else kind)
        return pieces

    def _check_pieces(self, seen: Observed) -> None:
        shown = [Piece(p.kind, letter) for p in seen.pieces for letter in p.text]
        if not seen.request.wants_text:
            assert shown == []
            return
        expected = self.pieces_of(seen.tokens)
        if seen.is_cancelled:
            assert shown == expected[: len(shown)]
            return
        stop = self._stop_position(seen.request, seen.tokens)
        if stop is not None:
            self.counts["stop texts"] += 1
            places = [i for i, piece in enumerate(expected) if piece.kind == "text"]
            expected = expected[: places[stop]]
        assert shown == expected, f"{shown} shown, {expected} expected"


class ToolReplay:
    """What a calculator in the reply answers, token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.code: list[int] | None = None

    def answer_to(self, token: int) -> list[int]:
        """The tokens that must follow a sampled one."""
        special = self.tokenizer.special_id
        if token == special("python_start"):
            self.code = []
            return []
        if self.code is None:
            return []
        if token != special("python_end"):
            self.code.append(token)
            return []
        result = calculate(self.tokenizer.decode(self.code))
        self.code = None
        if result is None:
            return []
        return [special("output_start"), *self.tokenizer.encode(result), special("output_end")]


def _candidates(logits_V: torch.Tensor, request: Request) -> set[int]:
    """Tokens that may be drawn; with those that rounding could let in."""
    settings, num_tokens = request.settings, logits_V.numel()
    values, tokens = logits_V.double().sort(descending=True)
    kept = values >= values[min(settings.top_k or num_tokens, num_tokens) - 1] - TOLERANCE
    shares = (values[kept] / settings.temperature).softmax(0)
    before = shares.cumsum(0) - shares
    return set(tokens[kept][before < settings.top_p + TOLERANCE].tolist())
