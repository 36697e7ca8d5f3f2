"""What the engine does next: who gets a row, which prompts are read on, who decodes.

Depends on nothing but what was asked in which order, so that a run can be repeated.
Shapes: B sequences of a chunk, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat_core.inference.requests import Output
from nanochat_core.inference.rows import MIN_SHARED, Head, Rows, num_shared
from nanochat_core.inference.sequences import ActiveSequence


@dataclass(frozen=True)
class Chunk:
    """Sequences of neighbouring rows, from `first_row` on, that read some of their prompts.

    All of them go on from position `start`; the longest reads `num_columns` tokens.
    """

    sequences: list[ActiveSequence]
    first_row: int
    start: int
    num_columns: int


@dataclass(frozen=True)
class Limits:
    """The most that is done at once."""

    num_rows: int
    chunk_tokens: int
    cache_tokens: int
    """Of all rows together, each counted as long as the longest may become."""
    is_exact: bool


class Scheduler:
    """The queue before the rows; sequences are taken in order of arrival."""

    def __init__(self, rows: Rows, limits: Limits) -> None:
        self.rows, self.limits = rows, limits
        self.waiting: deque[ActiveSequence] = deque()
        self.num_prefix_tokens = 0

    def schedule(self) -> tuple[Chunk | None, list[ActiveSequence]]:
        """What to do now: a chunk of prompts to read, and the sequences of which each decodes."""
        if self.waiting:
            self._admit()
        chunk, decoding = self._next_chunk(), self.rows.decoding
        longest = max((sequence.num_cached + 1 for sequence in decoding), default=0)
        self.rows.reserve(max(longest, 0 if chunk is None else chunk.start + chunk.num_columns))
        return chunk, decoding

    def prefilled(
        self, chunk: Chunk, logits_BV: torch.Tensor
    ) -> tuple[list[ActiveSequence], torch.Tensor]:
        """The sequences whose prompts were read to the end, which decode from now on."""
        done = [row for row, sequence in enumerate(chunk.sequences) if sequence.is_prefilled]
        for row in done:
            self.rows.start_decoding(chunk.first_row + row)
        whole = len(done) == len(chunk.sequences)
        return [chunk.sequences[row] for row in done], logits_BV if whole else logits_BV[done]

    def retire(self, outputs: Sequence[Output]) -> None:
        """Free the rows of the sequences that are done."""
        done = {output.sequence_id for output in outputs if output.finish_reason is not None}
        for sequence in self.rows.running if done else ():
            if sequence.sequence_id in done:
                self.rows.free(self.rows.row_of(sequence))

    def cancel(self, sequence_id: int) -> None:
        """Take a sequence out, wherever it is."""
        for sequence in self.waiting:
            if sequence.sequence_id == sequence_id:
                self.waiting.remove(sequence)
                return
        for sequence in self.rows.running:
            if sequence.sequence_id == sequence_id:
                self.rows.free(self.rows.row_of(sequence))
                return

    def _admit(self) -> None:
        """Give rows to those who wait, as long as there are any."""
        held = list[ActiveSequence]()
        while self.waiting and self._has_room(self.waiting[0]):
            sequence = self.waiting.popleft()
            head = Head(-1, 0) if self.limits.is_exact else self.rows.find_head(sequence.tokens)
            if self._is_being_read(sequence, head):
                held.append(sequence)
                continue
            self.rows.take(sequence, head)
            self.num_prefix_tokens += head.num_tokens
        self.waiting.extendleft(reversed(held))

    def _next_chunk(self) -> Chunk | None:
        """The prompts to read on: as many as fit in a chunk and go on from one position."""
        if self.rows.num_decoding == self.rows.num_running:
            return None
        prefilling = self.rows.prefilling
        start, chosen, columns = prefilling[0].num_cached, list[ActiveSequence](), 0
        for sequence in prefilling:
            longest = max(columns, len(sequence.request.prompt) - start)
            is_too_much = (len(chosen) + 1) * longest > self.limits.chunk_tokens
            if chosen and (is_too_much or self.limits.is_exact or sequence.num_cached != start):
                break
            chosen.append(sequence)
            columns = longest
        columns = min(columns, self.limits.chunk_tokens)
        return Chunk(chosen, self.rows.num_decoding, start, columns)

    def _has_room(self, sequence: ActiveSequence) -> bool:
        running = self.rows.num_running
        if running == 0 or running >= self.limits.num_rows:
            return running == 0
        longest = max(s.most_tokens for s in (*self.rows.running, sequence))
        # Rows are as long as the longest ever was.
        longest = max(longest, self.rows.capacity)
        return (running + 1) * longest <= self.limits.cache_tokens

    def _is_being_read(self, sequence: ActiveSequence, head: Head) -> bool:
        """Whether another one reads the beginning of this prompt just now: then it is worth a wait.

        That is where it saves most of the prompt, as with many samples of one question.
        """
        if self.limits.is_exact:
            return False
        prompt = sequence.request.prompt
        least = max(MIN_SHARED, head.num_tokens + 1, len(prompt) // 2)
        return any(
            other.request.prompt[:MIN_SHARED] == prompt[:MIN_SHARED]
            and num_shared(list(prompt[:-1]), list(other.request.prompt)) >= least
            for other in self.rows.prefilling
        )
