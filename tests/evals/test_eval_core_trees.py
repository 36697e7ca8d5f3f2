"""Trees of prompts: every token once, every prompt found again, work shared where that pays."""

import numpy as np
import pytest

from nanochat_core.evals.core_prompts import Prompt
from nanochat_core.evals.shared_prefixes import Costs, Tree, batches, plant

COSTS = Costs(token=768, window=192)
HUGE = 1 << 40


def prompt(tokens: list[int], span: int = 1) -> Prompt:
    return Prompt(np.array(tokens, dtype=np.int32), len(tokens) - span, len(tokens))


def path_to(tree: Tree, place: int) -> list[int]:
    """Places from the first token of a prompt to this one."""
    path = [place]
    while tree.parents_N[path[-1]] >= 0:
        path.append(int(tree.parents_N[path[-1]]))
    return path[::-1]


def check(prompts: list[Prompt], trees: list[Tree]) -> None:
    """Each scored prompt can be read off one tree, and masks say what the parents say."""
    found = []
    for tree in trees:
        first, reads = 0, tree.places_L[tree.rows_R]
        for end, number in tree.ends:
            whole = prompts[number]
            assert tree.targets_R[first:end].tolist() == whole.tokens[whole.start :].tolist()
            path = path_to(tree, int(reads[end - 1]))
            assert tree.tokens_N[path].tolist() == whole.tokens[:-1].tolist()
            assert tree.positions_N[path].tolist() == list(range(len(path)))
            assert reads[first:end].tolist() == path[whole.start - 1 :]
            found.append(number)
            first = end
        trunk = np.arange(tree.num_trunk)
        assert (tree.parents_N[trunk] == trunk - 1).all()
        for q in range(tree.num_tail):
            path = path_to(tree, tree.num_trunk + q)
            assert tree.forks_Q[q] == sum(place < tree.num_trunk for place in path)
            in_tail = [place - tree.num_trunk for place in path if place >= tree.num_trunk]
            assert np.flatnonzero(tree.sees_QQ[q]).tolist() == sorted(in_tail)
    assert sorted(found) == [i for i, p in enumerate(prompts) if p.is_scored]


def random_items(seed: int, num_items: int = 12) -> list[list[Prompt]]:
    """Options that fork early and late, prompts that repeat, and some that cannot be scored."""
    rng = np.random.default_rng(seed)
    stories = [rng.integers(0, 3, 30).tolist() for _ in range(3)]
    items = []
    for _ in range(num_items):
        story = stories[rng.integers(3)][: rng.integers(1, 30)]
        options = []
        for _ in range(rng.integers(1, 5)):
            new = rng.integers(0, 3, rng.integers(1, 12)).tolist()
            options.append(prompt([*story, *new], span=int(rng.integers(0, len(new) + 1))))
        items.append(options)
    return items


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("token_cost", [0.5, 20, 5000])
def test_every_prompt_is_on_exactly_one_tree(seed: int, token_cost: float) -> None:
    items = random_items(seed)
    prompts, trees = plant(items, Costs(token_cost, 16), HUGE)
    check(prompts, trees)
    if token_cost == 5000:
        assert sum(len(tree.tokens_N) for tree in trees) < sum(len(p.tokens) for p in prompts) / 2


def test_options_share_all_that_comes_before_them() -> None:
    stem = list(range(100, 600))
    options = [prompt([*stem, *range(i, i + 5)], span=5) for i in range(4)]
    prompts, trees = plant([options], COSTS, HUGE)
    check(prompts, trees)
    (tree,) = trees
    assert len(tree.tokens_N) == 500 + 4 * 4
    assert (tree.num_trunk, tree.num_tail) == (504, 12)


def test_answers_of_one_token_are_read_off_the_same_place() -> None:
    prompts, (tree,) = plant([[prompt([1, 2, 3, i]) for i in range(5)]], COSTS, HUGE)
    check(prompts, [tree])
    assert tree.tokens_N.tolist() == [1, 2, 3]
    assert (tree.places_L.tolist(), tree.rows_R.tolist()) == ([2], [0] * 5)


def test_a_story_is_read_once_for_all_questions_about_it() -> None:
    story = list(range(1000, 1300))
    asked = [prompt([*story, *range(10 * i), 7]) for i in (3, 1, 4, 2, 5)]
    prompts, trees = plant([[p] for p in asked], COSTS, HUGE)
    check(prompts, trees)
    # Each question follows those before it, so that the longest prompt holds them all.
    assert [len(tree.tokens_N) for tree in trees] == [350]


def test_prompts_that_share_too_little_stay_apart() -> None:
    rng = np.random.default_rng(0)
    apart = [prompt([1, *rng.integers(5, 99, 400).tolist()]) for _ in range(3)]
    prompts, trees = plant([apart], COSTS, HUGE)
    check(prompts, trees)
    assert [tree.num_tail for tree in trees] == [0, 0, 0]


def test_only_the_options_of_one_example_may_be_more_than_a_pass_holds() -> None:
    stem = list(range(100, 300))
    items = [[prompt([*stem, 10 * i + k, 5]) for k in range(3)] for i in range(4)]
    sizes = {}
    for most in (1, 208, HUGE):
        prompts, trees = plant(items, COSTS, most)
        check(prompts, trees)
        sizes[most] = sorted(len(tree.tokens_N) for tree in trees)
        for batch in batches(trees, most):
            assert len(batch) == 1 or sum(len(tree.tokens_N) for tree in batch) <= most
    assert sizes[1] == [203] * 4
    assert sizes[208] == [206, 206]
    assert sizes[HUGE] == [212]


def test_batches_hold_trunks_of_like_length_and_every_tree() -> None:
    rng = np.random.default_rng(1)
    items = [[prompt(rng.integers(0, 99, n).tolist())] for n in rng.integers(2, 500, 60)]
    _, trees = plant(items, COSTS, 4000)
    made = list(batches(trees, 4000))
    assert sum(map(len, made)) == len(trees) == 60
    for batch in made:
        lengths = [tree.num_trunk for tree in batch]
        assert max(lengths) - min(lengths) <= max(16, 0.2 * max(lengths))
