"""The conversation behind the chat: what is kept, what is sent, and what is taken back."""

from itertools import pairwise

import pytest

from nanochat_core.conversation.types import Conversation
from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.jobs.chat_dialogue import Dialogue, unheard
from nanochat_core.jobs.chat_settings import ChatSettings, read_number
from nanochat_core.tokenizer.chat_format import render_prompt, trim_history
from tests.jobs.chat_tools import ENDLESS, SUM, YES, greedy_dialogue, scripted_model


def test_a_reply_is_heard_as_it_comes_and_kept() -> None:
    dialogue, heard = greedy_dialogue(*SUM), []
    dialogue.settings = dialogue.settings.with_number("max_tokens", 5)
    answer = dialogue.ask("6*7", lambda kind, text: heard.append((kind, text)))
    assert [kind for kind, _ in heard] == ["python"] * 3 + ["python_output"] * 2
    assert [(part.kind, part.text) for part in answer.parts] == [
        ("python", "6*7"),
        ("python_output", "42"),
    ]
    assert dialogue.exchanges[0].answer is answer


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came() -> None:
    dialogue, heard = greedy_dialogue(*ENDLESS), []
    answer = dialogue.ask("x", lambda _, text: heard.append(text), lambda: len(heard) == 3)
    assert (answer.text, answer.finish_reason) == ("hah", "stopped")
    assert dialogue.exchanges[0].messages[1].text == "hah"
    assert not dialogue.model.engine.has_work


def test_what_is_stopped_before_a_word_is_not_kept() -> None:
    dialogue = greedy_dialogue(*YES)
    answer = dialogue.ask("x", unheard, lambda: True)
    assert (answer.num_tokens, answer.finish_reason) == (0, "stopped")
    assert dialogue.exchanges == []
    assert dialogue.ask("x", unheard).text == "yes"


def test_an_empty_reply_is_a_reply() -> None:
    dialogue = greedy_dialogue("assistant_start", "assistant_end")
    assert dialogue.ask("x", unheard).text == ""
    assert dialogue.ask("y", unheard).finish_reason == "stop"
    assert len(dialogue.exchanges) == 2


def test_special_tokens_that_a_person_types_are_text() -> None:
    dialogue = greedy_dialogue(*YES)
    text = "<|assistant_end|><|bos|>"
    assert dialogue.ask(text, unheard).num_prompt_tokens == 4 + len(text)


def test_each_turn_is_given_all_before_it() -> None:
    dialogue = greedy_dialogue(*YES)
    lengths = [dialogue.ask("q", unheard).num_prompt_tokens for _ in range(3)]
    # user_start q user_end assistant_start yes assistant_end
    assert [b - a for a, b in pairwise(lengths)] == [8, 8]


@pytest.mark.parametrize("system", ["", "Be brief. " * 9])
@pytest.mark.parametrize("num_exchanges", [0, 3, 11, 12, 30])
def test_what_is_left_out_is_what_trim_history_leaves_out(system: str, num_exchanges: int) -> None:
    dialogue = greedy_dialogue(*YES, system=system.strip())
    for _ in range(num_exchanges):
        dialogue.ask("q" * 20, unheard)
    prompt, num_dropped = dialogue._prompt(dialogue.exchanges, "now")
    tokenizer = dialogue.model.engine.tokenizer
    whole = dialogue._conversation(dialogue.exchanges, "now")
    kept = trim_history(tokenizer, whole, max_tokens=dialogue.room)
    assert prompt == render_prompt(tokenizer, kept, max_tokens=dialogue.room)
    assert 2 * num_dropped == len(whole.messages) - len(kept.messages)
    assert isinstance(whole, Conversation)


def test_a_message_that_cannot_fit_changes_nothing() -> None:
    dialogue = greedy_dialogue(*YES, system="Be brief.")
    dialogue.ask("hi", unheard)
    with pytest.raises(ConfigError, match=r"with the system text has 415 tokens; .* takes 320"):
        dialogue.ask("x" * 400, unheard)
    assert len(dialogue.exchanges) == 1


def test_a_retry_has_the_next_seed_and_the_place_of_the_last_reply() -> None:
    model = scripted_model(*YES)
    dialogue = Dialogue(model, ChatSettings(temperature=9.0, seed=3, max_tokens=30))
    first = dialogue.ask("x", unheard)
    again = [dialogue.retry(unheard) for _ in range(2)]
    assert [answer.settings.seed for answer in (first, *again)] == [3, 4, 5]
    assert [exchange.answer for exchange in dialogue.exchanges] == [again[-1]]
    other = Dialogue(model, ChatSettings(temperature=9.0, seed=5, max_tokens=30))
    assert other.ask("x", unheard).parts == again[-1].parts
    assert dialogue.settings.seed == 3


def test_a_retry_that_could_not_differ_is_refused() -> None:
    dialogue = greedy_dialogue(*YES)
    with pytest.raises(ConfigError, match="no reply to try again"):
        dialogue.retry(unheard)
    dialogue.ask("x", unheard)
    with pytest.raises(ConfigError, match="temperature 0 the reply would be the same"):
        dialogue.retry(unheard)


def test_undo_takes_back_one_exchange_and_reset_all() -> None:
    dialogue = greedy_dialogue(*YES)
    for text in ("a", "b", "c"):
        dialogue.ask(text, unheard)
    assert dialogue.undo().question == "c"
    assert [exchange.question for exchange in dialogue.exchanges] == ["a", "b"]
    dialogue.reset()
    with pytest.raises(ConfigError, match="nothing to take back"):
        dialogue.undo()


def test_another_model_goes_on_with_the_conversation() -> None:
    dialogue = greedy_dialogue(*YES)
    dialogue.ask("x", unheard)
    dialogue.model = scripted_model("assistant_start", "n", "o", "assistant_end", name="other")
    answer = dialogue.ask("x", unheard)
    assert (answer.text, answer.model, answer.num_prompt_tokens) == ("no", "other", 13)
    assert [exchange.answer.model for exchange in dialogue.exchanges] == ["scripted", "other"]


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("temperature", "0", 0.0),
        ("top_k", "7", 7),
        ("top_p", "1", 1.0),
        ("seed", str(2**62), 2**62),
    ],
)
def test_a_number_is_read_as_it_is_written(name: str, given: str, value: float) -> None:
    assert read_number(name, given) == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("temperature", "inf"),
        ("temperature", "warm"),
        ("top_k", "-1"),
        ("top_k", "1e3"),
        ("top_p", "1.01"),
        ("max_tokens", ""),
        ("seed", "-1"),
    ],
)
def test_a_number_out_of_range_is_refused(name: str, given: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} {given}: give "):
        read_number(name, given)


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="temperature, top_k"):
        read_number("warmth", "1")
