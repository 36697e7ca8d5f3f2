"""When an answer counts, which questions are asked, and what the scores say."""

import pytest
from eval_tools import make_tokenizer

from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.errors import ConfigError
from nanochat_core.evals.chat import (
    ChatAnswer,
    ChatQuestion,
    ask,
    chat_scores,
    make_questions,
    visible_text,
)

FACTS = ModelFacts(
    name="Ada",
    depth=2,
    num_parameters=1_180_000,
    n_embd=128,
    n_head=1,
    vocab_size=2048,
    sequence_len=256,
)
TOKENIZER = make_tokenizer()


@pytest.mark.parametrize(
    ("kind", "accept", "answer", "is_right"),
    [
        ("name", "Ada", "I am ada!", True),
        ("name", "Ada", "I am Adam.", False),
        ("depth", "2", "I have 2 layers.", True),
        ("depth", "2", "I have 12 layers and 1.2 million parameters.", False),
        ("parameters", "1.2 million", "I have 1.2 million parameters.", True),
        ("parameters", "1.2 million", "I have 11.2 million parameters.", False),
        ("sums", "7", "0 + 7 = 7.", True),
        ("sums", "7", "0 + 7 = 9.", False),
        ("sums", "7", "It is 7", True),
        ("sums", "7", "", False),
    ],
)
def test_an_answer_counts_when_it_states_the_value(
    kind: str, accept: str, answer: str, is_right: bool
) -> None:
    question = ChatQuestion(kind=kind, question="?", accept=(accept,))
    assert ChatAnswer(question, answer).is_right is is_right


def test_questions_are_of_all_kinds_and_the_same_every_time() -> None:
    questions = make_questions(FACTS, identity=30, sums=5, seed=1)
    kinds = [item.kind for item in questions]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "name": 10, "depth": 10, "parameters": 10, "sums": 5,
    }  # fmt: skip
    assert make_questions(FACTS, identity=30, sums=5, seed=1) == questions
    with pytest.raises(ConfigError, match="identity_questions=1000"):
        make_questions(FACTS, identity=1000, sums=0, seed=1)


def test_every_question_gets_its_own_answer_in_order() -> None:
    questions = make_questions(FACTS, identity=6, sums=2, seed=1)
    user_end, assistant_start, end = (
        TOKENIZER.special_id(name) for name in ("user_end", "assistant_start", "assistant_end")
    )
    done = []

    def echo(prompts: list[list[int]]) -> list[list[int]]:
        assert all(prompt[-2:] == [user_end, assistant_start] for prompt in prompts)
        return [[*prompt[2:-2], end, *TOKENIZER.encode("never seen")] for prompt in prompts]

    answers = ask(questions, TOKENIZER, echo, batch_size=3, on_done=done.append)
    assert [answer.answer for answer in answers] == [item.question for item in questions]
    assert done == [3, 6, 8]


def test_code_and_tool_output_are_not_part_of_the_visible_text() -> None:
    start, end, out, out_end = (
        TOKENIZER.special_id(name)
        for name in ("python_start", "python_end", "output_start", "output_end")
    )
    code, result = TOKENIZER.encode("3+4"), TOKENIZER.encode("7")
    said = TOKENIZER.encode("3 + 4 = 9.")
    reply = [start, *code, end, out, *result, out_end, *said]
    assert visible_text(TOKENIZER, reply) == "3 + 4 = 9."


def test_scores_are_shares_by_kind() -> None:
    right = ChatQuestion("name", "?", ("Ada",))
    answers = [ChatAnswer(right, "Ada"), ChatAnswer(right, "Bob")]
    answers.append(ChatAnswer(ChatQuestion("sums", "?", ("7",)), "7"))
    scores = chat_scores(answers)
    assert scores == {
        "identity": 0.5, "identity/right": 1, "identity/asked": 2,
        "name": 0.5, "name/right": 1, "name/asked": 2,
        "sums": 1.0, "sums/right": 1, "sums/asked": 1,
    }  # fmt: skip
    record = answers[1].record()
    assert record == {
        "kind": "name", "question": "?", "answer": "Bob", "accept": ["Ada"], "right": False,
    }  # fmt: skip
