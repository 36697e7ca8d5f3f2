"""What a model is taught about itself, and that held-out questions are really held out."""

import random
from collections import Counter

import pytest

from nanochat_core.conversation.answers import normalise, states, states_any
from nanochat_core.conversation.identity import (
    ModelFacts,
    accepted_values,
    framed,
    held_out_questions,
    identity_answers,
    identity_conversations,
    short_count,
)
from nanochat_core.conversation.phrasings import (
    HELD_OUT_FRAMES,
    HELD_OUT_QUESTIONS,
    HELD_OUT_TOPICS,
    MAIN_FACTS,
    TOPICS,
    TRAINED_FRAMES,
    TRAINED_QUESTIONS,
)


def trained_sentences() -> set[str]:
    """Every question that can be trained with, before openings, closings and letter case."""
    whole = {q for questions in TRAINED_QUESTIONS.values() for q in questions}
    frames = [frame for frames in TRAINED_FRAMES.values() for frame in frames]
    topics = [topic for topics in TOPICS.values() for topic in topics]
    return whole | {framed(frame, topic) for frame in frames for topic in topics}


def first_words(sentence: str, count: int) -> str:
    return " ".join(normalise(sentence).split()[:count])


def test_the_first_thirty_held_out_questions_are_ten_on_each_fact(facts: ModelFacts) -> None:
    questions = held_out_questions(facts)
    assert len({normalise(q.question) for q in questions}) == len(questions) == 36
    assert Counter(q.kind for q in questions[:30]) == dict.fromkeys(MAIN_FACTS, 10)


def test_no_family_of_held_out_questions_is_trained_with() -> None:
    frames = {normalise(frame) for frames in TRAINED_FRAMES.values() for frame in frames}
    assert frames.isdisjoint(map(normalise, HELD_OUT_FRAMES.values()))
    assert set(TRAINED_FRAMES).isdisjoint(HELD_OUT_FRAMES)
    for fact in MAIN_FACTS:
        assert set(TOPICS[fact]).isdisjoint(HELD_OUT_TOPICS[fact])
        assert set(TRAINED_QUESTIONS[fact]).isdisjoint(HELD_OUT_QUESTIONS[fact])


def test_no_held_out_question_begins_like_a_trained_one(facts: ModelFacts) -> None:
    trained = {first_words(sentence, 3) for sentence in trained_sentences()}
    assert trained.isdisjoint(first_words(q.question, 3) for q in held_out_questions(facts))


def test_no_held_out_question_holds_a_whole_trained_one(facts: ModelFacts) -> None:
    trained = {f" {normalise(sentence)} " for sentence in trained_sentences()}
    trained = {sentence for sentence in trained if len(sentence.split()) >= 3}
    for q in held_out_questions(facts):
        inside = [sentence for sentence in trained if sentence in f" {normalise(q.question)} "]
        assert not inside, q.question


def test_no_conversation_asks_a_held_out_question(facts: ModelFacts) -> None:
    held_out = {normalise(q.question) for q in held_out_questions(facts)}
    for conversation in identity_conversations(facts, 3000, random.Random(1)):
        for message in conversation.messages[::2]:
            assert normalise(message.text) not in held_out


def test_each_fact_has_one_answer_and_it_is_right_for_its_own_questions_only(
    facts: ModelFacts,
) -> None:
    answers = identity_answers(facts)
    assert len(set(answers.values())) == len(answers) == 18
    for asked, values in accepted_values(facts).items():
        right = [fact for fact, answer in answers.items() if states_any(answer, values)]
        assert right == [asked]


def test_every_question_gets_the_answer_of_its_fact(facts: ModelFacts) -> None:
    answers = identity_answers(facts)
    fact_of = {normalise(q): fact for fact, qs in TRAINED_QUESTIONS.items() for q in qs}
    seen: Counter[str] = Counter()
    for conversation in identity_conversations(facts, 2000, random.Random(2)):
        turns = conversation.messages
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            assert answer.text in answers.values()
            fact = fact_of.get(normalise(question.text))
            assert fact is None or answer.text == answers[fact]
            seen[answer.text] += 1
    assert set(seen) == set(answers.values())
    share = sum(seen[answers[fact]] for fact in MAIN_FACTS) / seen.total()
    assert share == pytest.approx(0.45, abs=0.04)


def test_no_question_belongs_to_two_facts() -> None:
    questions = [normalise(q) for qs in TRAINED_QUESTIONS.values() for q in qs]
    assert not [q for q, count in Counter(questions).items() if count > 1]
    topics = [topic for topics in (*TOPICS.values(), *HELD_OUT_TOPICS.values()) for topic in topics]
    assert len(topics) == len(set(topics))


def test_equal_seeds_give_equal_conversations(facts: ModelFacts) -> None:
    first = identity_conversations(facts, 50, random.Random(3))
    assert first == identity_conversations(facts, 50, random.Random(3))
    assert first != identity_conversations(facts, 50, random.Random(4))


def test_a_model_of_one_layer_and_head_says_so_in_the_singular(facts: ModelFacts) -> None:
    answers = identity_answers(facts.model_copy(update={"depth": 1, "n_head": 1}))
    assert answers["depth"] == "I have 1 layer."
    assert answers["heads"] == "Each block has 1 attention head."


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1"),
        (512, "512"),
        (999, "999"),
        (1_000, "1.0 thousand"),
        (9_949, "9.9 thousand"),
        (9_960, "10 thousand"),
        (340_000, "340 thousand"),
        (999_499, "999 thousand"),
        (999_500, "1.0 million"),
        (1_179_690, "1.2 million"),
        (73_500_000, "74 million"),
        (1_384_120_000, "1.4 billion"),
    ],
)
def test_counts_are_said_as_people_say_them(number: int, text: str) -> None:
    assert short_count(number) == text


@pytest.mark.parametrize(
    ("reply", "value", "is_stated"),
    [
        ("I have 2 layers.", "2", True),
        ("2", "2", True),
        ("It is 2, I think", "2", True),
        ("Layers: 2.", "2", True),
        ("I have 12 layers.", "2", False),
        ("I have 2.5 layers.", "2", False),
        ("I have 1.2 layers.", "2", False),
        ("It is -2.", "2", False),
        ("GPT-2", "2", False),
        ("2,048 tokens", "2", False),
        ("2 million parameters", "2", False),
        ("two", "2", False),
        ("I have 1.2 million parameters.", "1.2 million", True),
        ("I have 1.2 millions", "1.2 million", False),
        ("I have 11.2 million parameters.", "1.2 million", False),
        ("My name is Nanochat!", "nanochat", True),
        ("My name is nanochatter.", "nanochat", False),
        ("", "2", False),
    ],
)
def test_a_value_counts_when_it_stands_on_its_own(reply: str, value: str, is_stated: bool) -> None:
    assert states(reply, value) is is_stated


def test_a_held_out_question_knows_its_right_replies(facts: ModelFacts) -> None:
    answers = identity_answers(facts)
    for q in held_out_questions(facts):
        assert q.is_answered_by(answers[q.kind])
        assert not q.is_answered_by(answers["hello"])
    parameters = next(q for q in held_out_questions(facts) if q.kind == "parameters")
    assert parameters.is_answered_by("exactly 1,179,690 of them")
