"""Fine-tuning on own conversations: those that cannot be taught are counted, and harm nothing."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from job_tools import SFT, make_spec, run_ranks

from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.mixture import build_mixture
from nanochat_core.conversation.pools import Drawn
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.conversation.types import Conversation, exchange
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.jobs import sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.sft_conversations import SHOWN_CONVERSATIONS, render_rows
from nanochat_core.tokenizer.tokenizer import Tokenizer

SHORT = [exchange(f"Is {n} a number?", "Yes.") for n in range(20)]
LONG = [exchange("Tell me all. " * 20, f"{n}") for n in range(4)]
LONG += [exchange("Tell me all.", f"{n} and more " * 30) for n in range(3)]
MASKED = [Conversation(messages=(exchange("Is anybody there?", "Yes.").messages[0],))]


def own(folder: Path, conversations: list[Conversation], **fields: Any) -> MixturePart:
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps([{"role": m.role, "content": m.text} for m in each.messages])
        for each in conversations
    ]
    (folder / "me.jsonl").write_text("\n".join(lines))
    return MixturePart(kind="jsonl", file="me.jsonl", **fields)


def tuned(
    base: dict[str, str],
    folder: Path,
    part: MixturePart,
    *,
    benchmarks: Path | None = None,
    ranks: int = 1,
) -> tuple[dict[str, Any], list[Any]]:
    """Metrics of the artifact, and those of each step."""
    recipe = SFT.model_copy(update={"mixture": Mixture(parts=(part,)), "num_iterations": 6})
    inputs = {**base, "benchmarks": str(benchmarks or folder / "benchmarks")}
    spec = make_spec(recipe, inputs, folder, station="sft", device_batch_size=1, ranks=ranks)
    if ranks == 1:
        sft.main(spec, Ranks.single(), StopRequest())
    else:
        process = run_ranks(spec)
        assert process.returncode == 0, process.stderr[-3000:]
    outputs = json.loads((folder / "output" / "outputs.json").read_bytes())
    lines = (folder / "work" / "metrics.jsonl").read_text().splitlines()
    return outputs["metrics"], [json.loads(line) for line in lines]


def test_conversations_that_cannot_be_taught_are_counted_and_no_loss_is_nan(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    part = own(tmp_path / "benchmarks", LONG[:4] + SHORT + MASKED + LONG[4:])
    metrics, steps = tuned(base, tmp_path, part)
    assert metrics["conversations"] == len(SHORT)
    assert metrics["conversations_too_long"] == len(LONG)
    assert metrics["conversations_without_targets"] == len(MASKED)
    assert metrics["conversations/me.jsonl"] == len(SHORT + LONG + MASKED)
    assert len(steps) == 6
    assert all(math.isfinite(step["train/loss"]) and step["train/loss"] > 0 for step in steps)
    assert math.isfinite(metrics["train/loss"])


def test_every_micro_batch_of_one_row_has_something_to_learn(
    base: dict[str, str], tmp_path: Path
) -> None:
    mixture = Mixture(parts=(own(tmp_path, LONG + SHORT + MASKED),))
    facts = ModelFacts(
        name="nanochat", depth=2, num_parameters=1, n_embd=32, n_head=2, vocab_size=320,
        sequence_len=64,
    )  # fmt: skip
    built = build_mixture(mixture, facts, [], lambda _: Drawn([*LONG, *SHORT, *MASKED]))
    tokenizer = Tokenizer.load(Path(base["tokenizer"]))
    taught = render_rows(built, tokenizer, Ranks.single(), sequence_len=64, buffer=100)
    for row in range(2 * taught.rows.num_rows):
        _, targets = taught.rows.read(row, 1)
        assert (targets >= 0).any()
    assert taught.first() == list(built.conversations[:SHOWN_CONVERSATIONS])


def test_conversations_beyond_the_most_tokens_are_cut_and_counted(base: dict[str, str]) -> None:
    facts = ModelFacts(
        name="nanochat", depth=2, num_parameters=1, n_embd=32, n_head=2, vocab_size=320,
        sequence_len=4096,
    )  # fmt: skip
    conversations = [exchange("Go on.", "on and " * 3000), exchange("Hi", "Hello")]
    mixture = Mixture(parts=(MixturePart(kind="jsonl", file="me.jsonl", epochs=2),))
    built = build_mixture(mixture, facts, [], lambda _: Drawn(conversations))
    tokenizer = Tokenizer.load(Path(base["tokenizer"]))
    taught = render_rows(built, tokenizer, Ranks.single(), sequence_len=4096, buffer=100)
    assert taught.metrics() == {
        "conversations": 4,
        "conversations_too_long": 0,
        "conversations_without_targets": 0,
        "conversations_cut": 2,
        "conversations/me.jsonl": 4,
    }


def test_conversations_of_a_file_that_was_not_given_are_refused(
    base: dict[str, str], tmp_path: Path
) -> None:
    recipe = SFT.model_copy(update={"mixture": Mixture(parts=(own(tmp_path / "a", SHORT),))})
    spec = make_spec(recipe, base, tmp_path / "b", station="sft")
    with pytest.raises(ConfigError, match=r"me\.jsonl are read from a file"):
        sft.main(spec, Ranks.single(), StopRequest())


def test_a_mixture_of_which_nothing_can_be_taught_says_why(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    with pytest.raises(DataError, match=r"none of 8 .* 7 are longer, and 1 hold nothing"):
        tuned(base, tmp_path, own(tmp_path / "benchmarks", LONG + MASKED))


@pytest.mark.distributed
@pytest.mark.xdist_group("sft_ranks")
def test_ranks_that_render_shares_teach_what_one_does(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    folder = tmp_path / "benchmarks"
    part = own(folder, LONG + SHORT + MASKED, epochs=2.5)
    one, two = (
        tuned(base, tmp_path / str(ranks), part, benchmarks=folder, ranks=ranks) for ranks in (1, 2)
    )
    counts = [
        {name: value for name, value in metrics.items() if name.startswith("conversations")}
        for metrics, _ in (one, two)
    ]
    assert counts[0] == counts[1]
    losses = [[step["train/loss"] for step in steps] for _, steps in (one, two)]
    # bfloat16 moments of the sum over ranks round otherwise.
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    told = [tmp_path / ranks / "output" / sft.PREVIEW_FILE for ranks in ("1", "2")]
    assert told[0].read_bytes() == told[1].read_bytes()
