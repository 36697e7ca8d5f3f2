"""The conversations of a fine-tuning: drawn or read, rendered as tokens, packed into rows.

Every rank renders a share of them and has those of the others from there: alone it would take
minutes for a set like SmolTalk.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nanochat_core.benchmarks.pools import open_pool
from nanochat_core.config.job import JobSpec
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.mixture import BuiltMixture, Place, build_mixture
from nanochat_core.conversation.questions import read_questions
from nanochat_core.conversation.recipes import Mixture
from nanochat_core.conversation.types import Conversation
from nanochat_core.data.conversation_rows import ConversationRows, Rendered, pack_conversations
from nanochat_core.distributed.collectives import broadcast
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render
from nanochat_core.tokenizer.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BENCHMARKS_INPUT = "benchmarks"
SHOWN_CONVERSATIONS = 100

Marked = npt.NDArray[np.int32]
"""Token ids times 2, plus 1 where the token is trained on."""


@dataclass(frozen=True)
class Taught:
    """The rows of an epoch, and what is told about the conversations in them."""

    mixture: BuiltMixture
    rows: ConversationRows
    num_cut: int

    def first(self) -> list[Conversation]:
        """Some conversations to look at, in the order of training."""
        places = self.mixture.order[:SHOWN_CONVERSATIONS]
        found = dict(self.mixture.read(places))
        return [found[place] for place in places]

    def metrics(self) -> dict[str, int]:
        """Counts for the artifact: those taught, those left out and why, and of each part."""
        return {
            "conversations": self.rows.conversations,
            "conversations_too_long": self.rows.too_long,
            "conversations_without_targets": self.rows.without_targets,
            "conversations_cut": self.num_cut,
            **{f"conversations/{label}": count for label, count in self.mixture.counts.items()},
        }


def mixture_of(spec: JobSpec, mixture: Mixture, facts: ModelFacts) -> BuiltMixture:
    """The mixture of a job, from the questions of its shards and the files of its benchmarks."""
    folder = spec.input(BENCHMARKS_INPUT) if BENCHMARKS_INPUT in spec.inputs else None
    questions = read_questions(spec.input("shards") / "qa.jsonl")
    return build_mixture(mixture, facts, questions, lambda part: open_pool(part, folder))


def render_rows(
    mixture: BuiltMixture, tokenizer: Tokenizer, ranks: Ranks, *, sequence_len: int, buffer: int
) -> Taught:
    """All rows of one epoch, in the order of the shuffled conversations; the same on every rank."""
    places = sorted(set(mixture.order))
    own = places[ranks.rank :: ranks.world_size]
    marked = from_all_ranks(_marked(mixture, tokenizer, own), places, ranks)
    rendered = {place: _rendered(tokens[:MAX_TOKENS]) for place, tokens in marked.items()}
    rows = pack_conversations(
        [rendered[place] for place in mixture.order],
        sequence_len=sequence_len,
        buffer=buffer,
        pad_id=tokenizer.bos_id,
    )
    num_cut = sum(len(marked[place]) > MAX_TOKENS for place in mixture.order)
    _tell(rows, num_cut, sequence_len)
    return Taught(mixture, rows, num_cut)


def from_all_ranks(
    own: Mapping[Place, Marked], places: Sequence[Place], ranks: Ranks
) -> dict[Place, Marked]:
    """The tokens of all places, of which rank r has every W-th from the r-th on."""
    if ranks.world_size == 1:
        return dict(own)
    found: dict[Place, Marked] = {}
    for source in range(ranks.world_size):
        theirs = places[source :: ranks.world_size]
        if not theirs:
            break
        lengths = torch.zeros(len(theirs), dtype=torch.int64, device=ranks.device)
        if source == ranks.rank:
            lengths.copy_(torch.tensor([len(own[place]) for place in theirs]))
        broadcast(lengths, ranks, source=source)
        tokens = torch.empty(int(lengths.sum()), dtype=torch.int32, device=ranks.device)
        if source == ranks.rank:
            tokens.copy_(torch.from_numpy(np.concatenate([own[place] for place in theirs])))
        broadcast(tokens, ranks, source=source)
        ends = lengths.cumsum(0).cpu().numpy()
        found.update(zip(theirs, np.split(tokens.cpu().numpy(), ends[:-1]), strict=True))
    return found


def _marked(
    mixture: BuiltMixture, tokenizer: Tokenizer, places: Sequence[Place]
) -> dict[Place, Marked]:
    marked = {}
    for place, conversation in mixture.read(places):
        # One token more than is kept tells a cut conversation from one of just that length.
        ids, mask = render(tokenizer, conversation, max_tokens=MAX_TOKENS + 1)
        marked[place] = 2 * np.array(ids, dtype=np.int32) + np.array(mask, dtype=np.int32)
    return marked


def _rendered(marked: Marked) -> Rendered:
    return marked >> 1, (marked & 1).astype(bool)


def _tell(rows: ConversationRows, num_cut: int, sequence_len: int) -> None:
    num_all = rows.conversations + rows.too_long + rows.without_targets
    log.info("%d conversations in %d rows of %d", rows.conversations, rows.num_rows, sequence_len)
    if rows.too_long:
        log.warning(
            "%d of %d conversations are longer than the context of %d tokens and left out",
            rows.too_long,
            num_all,
            sequence_len,
        )
    if rows.without_targets:
        log.warning("%d conversations teach nothing and are left out", rows.without_targets)
    if num_cut:
        log.warning("%d conversations are cut to %d tokens", num_cut, MAX_TOKENS)
