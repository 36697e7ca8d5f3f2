"""Prompts that begin alike as trees in which each token stands once (torch-free).

The options of an example share their few shots and mostly their question; the questions about one
story share the story. Each tree has a trunk, its longest prompt, which is read like any text; the
tokens that other prompts add are its tail. Every token is computed once, whatever follows it.

Shapes: N tokens of a tree, P of its trunk, Q of its tail, L places whose logits are wanted, R
tokens that are scored with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat_core.evals.core_prompts import Prompt, common_prefix

Ints = NDArray[np.int64]

LINEAR_PER_CHANNEL = 6
"""The matrices of a block cost 24 C^2 operations for a token, attention 4 C for a key (C channels):
a token costs as much as 6 C keys."""
TAIL_FACTOR = 2
"""A key that a token of a tail sees costs more than one of the trunk: masks, gathered copies."""


@dataclass(frozen=True)
class Costs:
    """What a model's forward pass costs, in keys that one token attends to in one block."""

    token: float
    window: int
    """Keys that a token of a long trunk sees, as a mean of the blocks."""

    @classmethod
    def of(cls, channels: int, windows: Sequence[int]) -> "Costs":
        """Of a model with so many channels and these windows."""
        return cls(LINEAR_PER_CHANNEL * channels, sum(windows) // len(windows))

    def tree(self, num_trunk: int, num_tail: int) -> float:
        """Of a trunk and a tail of so many tokens."""
        seen = min(num_trunk, self.window)
        keys = num_trunk * seen + TAIL_FACTOR * num_tail * (seen + num_tail)
        return self.token * (num_trunk + num_tail) + keys


@dataclass(frozen=True)
class Tree:
    """Tokens of prompts that share their beginnings; the first `num_trunk` are the trunk's.

    `parents_N` is the place of the token before, -1 for none; `forks_Q` counts the trunk tokens
    before each token of the tail; `sees_QQ` says which tokens of the tail are on its way, itself
    included. `places_L` are those whose logits are wanted, `rows_R` says which of them is read for
    each of `targets_R`, and `ends` where the reads of each prompt end, with its number.
    """

    tokens_N: Ints
    parents_N: Ints
    positions_N: Ints
    num_trunk: int
    forks_Q: Ints
    sees_QQ: NDArray[np.bool_]
    places_L: Ints
    rows_R: Ints
    targets_R: Ints
    ends: tuple[tuple[int, int], ...]

    @property
    def num_tail(self) -> int:
        """Tokens that are not the trunk's."""
        return len(self.tokens_N) - self.num_trunk


@dataclass
class _Cluster:
    """Numbers of prompts in an order in which each shares most with its neighbours."""

    members: list[int]
    shared: list[int]
    """Tokens that each member but the first has in common with the one before."""
    num_trunk: int
    num_tokens: int


def plant(
    items: Sequence[Sequence[Prompt]], costs: Costs, max_tokens: int
) -> tuple[list[Prompt], list[Tree]]:
    """All prompts of some examples, and the trees of those that can be scored.

    A tree is of one example, or of several with at most `max_tokens` tokens in all.
    """
    prompts = [prompt for options in items for prompt in options]
    inputs = [prompt.tokens[: prompt.end - 1].tobytes() for prompt in prompts]
    clusters: list[_Cluster] = []
    first = 0
    for options in items:
        numbers = [i for i in range(first, first + len(options)) if prompts[i].is_scored]
        singles = [_single(prompts, i) for i in sorted(numbers, key=lambda i: inputs[i])]
        clusters += _merged(singles, prompts, costs, 1 << 62)
        first += len(options)
    clusters.sort(key=lambda cluster: inputs[cluster.members[0]])
    together = _merged(clusters, prompts, costs, max_tokens)
    return prompts, [_tree(prompts, cluster) for cluster in together]


def batches(trees: Sequence[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """Trees with trunks of like length, longest first; at most `max_tokens` tokens, or one tree."""
    order = sorted(trees, key=lambda tree: (tree.num_trunk, tree.num_tail), reverse=True)
    batch: list[Tree] = []
    num_tokens = num_chosen = num_tail = 0
    for tree in order:
        num_tokens += len(tree.tokens_N)
        num_chosen = max(num_chosen, tree.num_tail, len(tree.places_L))
        num_tail = max(num_tail, tree.num_tail)
        if batch:
            num_keys = batch[0].num_trunk + num_tail
            is_large = (len(batch) + 1) * num_chosen * num_keys > MASK_ELEMENTS
            if num_tokens > max_tokens or is_large or _is_unlike(tree, batch[0]):
                yield batch
                batch, num_tokens, num_tail = [], len(tree.tokens_N), tree.num_tail
                num_chosen = max(num_tail, len(tree.places_L))
        batch.append(tree)
    if batch:
        yield batch


MASK_ELEMENTS = 1 << 26
"""Of what the tails or the tokens that are read see, padded; a mask for each kind of window."""
LIKE_SHARE, LIKE_TOKENS = 0.8, 16
"""Trunks are padded in attention alone; a few tokens, or a fifth, are cheaper than another pass."""


def _is_unlike(tree: Tree, longest: Tree) -> bool:
    missing = longest.num_trunk - tree.num_trunk
    return missing > max(LIKE_TOKENS, (1 - LIKE_SHARE) * longest.num_trunk)


def _single(prompts: Sequence[Prompt], number: int) -> _Cluster:
    size = prompts[number].end - 1
    return _Cluster([number], [], size, size)


def _merged(
    clusters: Sequence[_Cluster], prompts: Sequence[Prompt], costs: Costs, max_tokens: int
) -> list[_Cluster]:
    """Neighbours put together wherever that costs less."""
    merged: list[_Cluster] = []
    for cluster in clusters:
        both = _join(merged[-1], cluster, prompts, costs) if merged else None
        if both is not None and both.num_tokens <= max_tokens:
            merged[-1] = both
        else:
            merged.append(cluster)
    return merged


def _join(
    one: _Cluster, other: _Cluster, prompts: Sequence[Prompt], costs: Costs
) -> _Cluster | None:
    """Both in one tree; None if they share too little."""
    last, first = prompts[one.members[-1]], prompts[other.members[0]]
    shared = common_prefix([last.tokens[: last.end - 1], first.tokens[: first.end - 1]])
    num_trunk = max(one.num_trunk, other.num_trunk)
    num_tokens = one.num_tokens + other.num_tokens - shared
    apart = sum(costs.tree(c.num_trunk, c.num_tokens - c.num_trunk) for c in (one, other))
    if shared == 0 or costs.tree(num_trunk, num_tokens - num_trunk) >= apart:
        return None
    members = one.members + other.members
    return _Cluster(members, [*one.shared, shared, *other.shared], num_trunk, num_tokens)


class _Grower:
    """A tree while prompts are added to it."""

    def __init__(self, prompts: Sequence[Prompt], cluster: _Cluster) -> None:
        self._prompts = prompts
        self._num_trunk = cluster.num_trunk
        num_tail = cluster.num_tokens - cluster.num_trunk
        self.tokens_N = np.empty(cluster.num_tokens, dtype=np.int64)
        self.parents_N = np.arange(-1, cluster.num_tokens - 1)
        self.positions_N = np.arange(cluster.num_tokens)
        self.forks_Q = np.empty(num_tail, dtype=np.int64)
        self.sees_QQ = np.tri(num_tail, dtype=np.bool_) if num_tail else np.ones((0, 0), np.bool_)
        self._size = 0

    def add(self, number: int, before_N: Ints, shared: int, fork: int) -> Ints:
        """Append what a prompt adds to the `shared` tokens at the places `before`; its places."""
        prompt, start = self._prompts[number], self._size
        new_tokens = prompt.tokens[shared : prompt.end - 1]
        stop = self._size = start + len(new_tokens)
        new = slice(start, stop)
        self.tokens_N[new] = new_tokens
        path_N = np.concatenate([before_N[:shared], np.arange(start, stop)])
        if start == 0 or start == stop:
            return path_N
        self.positions_N[new] = np.arange(shared, shared + len(new_tokens))
        self.parents_N[start] = before_N[shared - 1] if shared else -1
        tail = slice(start - self._num_trunk, stop - self._num_trunk)
        self.forks_Q[tail] = fork
        self.sees_QQ[tail, : tail.start] = False
        self.sees_QQ[tail, before_N[fork:shared] - self._num_trunk] = True
        return path_N


def _tree(prompts: Sequence[Prompt], cluster: _Cluster) -> Tree:
    members, shared = cluster.members, cluster.shared
    sizes = [prompts[i].end - 1 for i in members]
    trunk = sizes.index(cluster.num_trunk)
    grower = _Grower(prompts, cluster)
    paths: dict[int, Ints] = {
        trunk: grower.add(members[trunk], np.empty(0, dtype=np.int64), 0, sizes[trunk])
    }
    # Among sorted prompts the neighbour on the trunk's side shares the most.
    after = [(i, i - 1, shared[i - 1]) for i in range(trunk + 1, len(members))]
    before = [(i, i + 1, shared[i]) for i in range(trunk - 1, -1, -1)]
    forks = {trunk: sizes[trunk]}
    for i, neighbour, count in after + before:
        forks[i] = min(forks[neighbour], count)
        paths[i] = grower.add(members[i], paths[neighbour], count, forks[i])
    reads, targets, ends, end = [], [], [], 0
    for i, path_N in paths.items():
        prompt = prompts[members[i]]
        reads.append(path_N[prompt.start - 1 :])
        targets.append(prompt.tokens[prompt.start : prompt.end])
        end += prompt.end - prompt.start
        ends.append((end, members[i]))
    # Options that differ from the first token on are all read off the same place.
    places_L, rows_R = np.unique(np.concatenate(reads), return_inverse=True)
    return Tree(
        tokens_N=grower.tokens_N,
        parents_N=grower.parents_N,
        positions_N=grower.positions_N,
        num_trunk=cluster.num_trunk,
        forks_Q=grower.forks_Q,
        sees_QQ=grower.sees_QQ,
        places_L=places_L,
        rows_R=rows_R,
        targets_R=np.concatenate(targets).astype(np.int64),
        ends=tuple(ends),
    )
