"""What an assistant says about itself is held against the facts; diversity of what is asked for."""

from collections import Counter

import pytest

from nanochat_core.conversation.claims import contradiction
from nanochat_core.conversation.diversity import (
    LENGTHS,
    OPENINGS,
    PERSONAS,
    TOPICS,
    Earlier,
    draw_plan,
)
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.made_identity import FactSheet, OwnFact, made_conversations
from nanochat_core.conversation.types import exchange

SHEET = FactSheet(
    name="Ada Lovelace",
    depth=2,
    num_parameters=1_179_690,
    n_embd=128,
    n_head=1,
    vocab_size=2048,
    sequence_len=256,
)


@pytest.mark.parametrize(
    "said",
    [
        "My name is Ada.",
        "I'm called \u201cAda Lovelace\u201d, but call me ada!",
        "You can call me whatever you like.",
        "I have 2 layers, two in words.",
        "I have just two Transformer layers and about 1.2 million parameters.",
        "I have 1,179,690 parameters.",
        "My 1.18M parameters are few; roughly a million parameters, or 1,180,000 weights.",
        "With one attention head and a width of 128, I am small.",
        "My vocabulary is 2,048 tokens, and I read 256 tokens at once.",
        "Large models have 96 layers and 175 billion parameters. I do not.",
        "No, I am not ChatGPT, and OpenAI has not made me.",
        "ChatGPT was made by OpenAI. I was made by a person.",
        "I am much smaller than GPT-4.",
        "It is 12 o'clock, and you have 3 apples.",
        "I was trained on 5 GB of text.",
    ],
)
def test_what_agrees_with_the_facts_is_taken(said: str) -> None:
    assert contradiction(SHEET, exchange("Who are you?", said)) == ""


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("My name is Bob.", "name"),
        ("Hi! You can call me Claude.", "name"),
        ("I\u2019m called \u2018Eve\u2019.", "name"),
        ("I have 12 layers.", "number"),
        ("I have twelve layers.", "number"),
        ("My depth is 4.", "number"),
        ("I have 2 million parameters.", "number"),
        ("I have about 1.1 million weights.", "number"),
        ("I use 8 attention heads.", "number"),
        ("My width is 768, so I am small.", "number"),
        ("My vocabulary has 50,257 tokens.", "number"),
        ("There are 7 billion parameters in me.", "number"),
        ("I am ChatGPT.", "other model"),
        ("No, I am not a human, I am GPT-4.", "other model"),
        ("I was trained by OpenAI.", "other model"),
        ("I'm Qwen, made by Alibaba Cloud.", "other model"),
    ],
)
def test_what_contradicts_the_facts_is_found(said: str, kind: str) -> None:
    found = contradiction(SHEET, exchange("Who are you?", said))
    assert found.startswith(f"{kind}: ")


def test_a_number_that_is_not_known_is_made_up() -> None:
    found = contradiction(FactSheet(name="Ada"), exchange("How deep?", "I have 2 layers."))
    assert found.endswith("depth is not known")


def test_a_maker_in_the_facts_may_be_named() -> None:
    said = exchange("Who made you?", "I was made by a team of Google.")
    assert contradiction(SHEET, said)
    sheet = SHEET.model_copy(update={"background": "Made at Google by three people."})
    assert contradiction(sheet, said) == ""


def test_templates_never_contradict_their_own_facts(facts: ModelFacts) -> None:
    sheet = FactSheet(**facts.model_dump())
    for conversation in made_conversations(sheet, 500, 1):
        assert contradiction(sheet, conversation) == ""


def test_every_topic_person_and_opening_comes_equally_often() -> None:
    sheet = FactSheet(more=(OwnFact(answer="In Oslo.", topic="where you live"),))
    num = (len(TOPICS) + 1) * len(PERSONAS) * 2
    plans = [draw_plan(sheet, 7, number) for number in range(num)]
    topics = Counter(plan.topic for plan in plans)
    assert set(topics) == {*TOPICS, "where you live"}
    assert max(topics.values()) - min(topics.values()) == 0
    personas = Counter(plan.persona for plan in plans)
    assert set(personas.values()) == {num // len(PERSONAS)}
    openings = Counter(plan.opening for plan in plans)
    assert set(openings) == set(OPENINGS)
    assert max(openings.values()) - min(openings.values()) <= 1
    assert {plan.num_exchanges for plan in plans} == set(LENGTHS)
    # Nearly all of them differ as a whole.
    kinds = {(p.topic, p.persona, p.opening, p.num_exchanges) for p in plans}
    assert len(kinds) > 0.95 * num


def test_a_plan_depends_on_seed_and_number_alone() -> None:
    sheet = FactSheet(name="Ada")
    assert draw_plan(sheet, 7, 41) == draw_plan(FactSheet(name="Bo"), 7, 41)
    assert [draw_plan(sheet, 7, n) for n in range(9)] != [draw_plan(sheet, 8, n) for n in range(9)]


ANSWER = "I am Ada, a small language model that a friend of mine has trained at home."


def test_what_was_said_before_is_recognised() -> None:
    earlier = Earlier()
    earlier.add(exchange("Please tell me who you are and what you can do.", ANSWER))
    near = exchange("Tell me please who you are and what you can do!", ANSWER)
    assert earlier.says_again(near) == "near-duplicate"
    inside = exchange("And so?", ANSWER)
    assert earlier.says_again(inside) == "near-duplicate"
    longer = exchange(
        "My grandson has put this on my computer, so do tell me, who is talking to me now?",
        f"{ANSWER} My knowledge is narrow, but I gladly try to help you with short questions.",
    )
    assert earlier.says_again(longer) == ""
    news = exchange("Is the weather nice where you are?", "I cannot see it, being a program.")
    assert earlier.says_again(news) == ""


def test_only_so_many_begin_with_the_same_words() -> None:
    earlier = Earlier()
    for answer in ("Good morning to you.", "Welcome, what can I do?"):
        said = exchange("Hello!", answer)
        assert earlier.says_again(said) == ""
        earlier.add(said)
    assert earlier.says_again(exchange("hello", "Nice to meet you.")) == "same opening"


def test_what_the_sheet_itself_says_is_no_contradiction() -> None:
    sheet = FactSheet(name="Ada", data="letters", answers={"depth": "I have 4 layers."})
    assert contradiction(sheet, exchange("How deep are you?", "I have 4 layers.")) == ""
    assert contradiction(sheet, exchange("How deep are you?", "I have 14 layers.")) != ""
