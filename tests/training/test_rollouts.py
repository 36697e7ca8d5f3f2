"""Which questions a step asks, and what becomes of the replies."""

from dataclasses import replace

from nanochat_core.benchmarks.sums import make_sums
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.training.recipes import RlRecipe
from nanochat_core.training.rollouts import RolloutMaker, step_questions
from tests.inference.scripted import bigram_model, byte_tokenizer
from tests.model.builders import random_model, small_config

RECIPE = RlRecipe(
    task="sums",
    questions_per_step=3,
    samples_per_question=4,
    normalise_group=2,
    max_new_tokens=6,
)
TOKENIZER = byte_tokenizer()


def random_maker(stop=lambda: False) -> RolloutMaker:  # noqa: ANN001
    model = random_model(small_config(vocab_size=TOKENIZER.vocab_size, n_layer=2))
    return RolloutMaker(InferenceEngine(model, TOKENIZER), make_sums("train", 10, 1), RECIPE, stop)


def test_every_problem_is_asked_once_before_any_is_asked_again() -> None:
    asked = [
        question[0].problem for step in range(20) for question in step_questions(RECIPE, step, 10)
    ]
    for first in range(0, 60, 10):
        assert sorted(asked[first : first + 10]) == list(range(10))
    assert asked[:10] != asked[10:20]
    other = RECIPE.model_copy(update={"seed": 1})
    assert asked[:3] != [question[0].problem for question in step_questions(other, 0, 10)]


def test_every_sample_has_random_numbers_of_its_own() -> None:
    seeds = [
        sample.seed
        for step in range(10)
        for question in step_questions(RECIPE, step, 2)
        for sample in question
    ]
    assert len(set(seeds)) == len(seeds) == 10 * 3 * 4


def test_replies_are_the_same_again_and_in_parts() -> None:
    questions = [sample for question in step_questions(RECIPE, 0, 10) for sample in question]
    made = random_maker().roll_out(questions)
    assert made == random_maker().roll_out(questions)
    assert len({tuple(rollout.reply.tokens) for rollout in made}) > 6
    few = random_maker()
    few = replace(
        few, engine=InferenceEngine(few.engine.model, TOKENIZER, EngineSettings(num_rows=5))
    )
    assert [r.reply for r in few.roll_out(questions)] == [r.reply for r in made]


def test_a_stop_request_ends_the_replies_where_they_are() -> None:
    calls = iter([False, False, True, True])
    maker = random_maker(lambda: next(calls))
    made = maker.roll_out(step_questions(RECIPE, 0, 10)[0])
    # Three steps; the first sample reads the question in the first, the others take it over.
    assert [len(rollout.reply.tokens) for rollout in made] == [3, 2, 2, 2]


def test_the_reward_is_for_what_a_reader_sees() -> None:
    benchmark = make_sums("train", 1, seed=3)
    answer = benchmark.conversation(0).messages[-1].text.rpartition("= ")[2].rstrip(".")
    assert len(set(answer)) == len(answer), "a digit can have one successor only"
    start, *digits = TOKENIZER.special_id("assistant_start"), *TOKENIZER.encode(answer)
    end = TOKENIZER.special_id("assistant_end")
    successors = dict(zip([start, *digits], [*digits, end], strict=True))
    for hidden in (False, True):
        if hidden:
            python = TOKENIZER.special_id("python_start")
            successors = {**successors, start: python, python: digits[0]}
        engine = InferenceEngine(bigram_model(TOKENIZER, successors), TOKENIZER)
        maker = RolloutMaker(engine, benchmark, RECIPE, lambda: False)
        (rollout,) = maker.roll_out(step_questions(RECIPE, 0, 1)[0][:1])
        assert answer in TOKENIZER.decode(rollout.reply.tokens)
        assert rollout.reward == (0.0 if hidden else 1.0)
