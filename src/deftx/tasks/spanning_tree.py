"""The best tree of a sentence: the maximum spanning arborescence with one root (Chu and Liu 1965;
Edmonds 1967; one root by Stanojević and Cohen 2021)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Heads = NDArray[np.int64]


def best_tree(scores: Scores) -> list[int]:
    """The heads of the tree with the highest sum of scores among those with one root.

    Args:
        scores: The score of each head of each word [words, 1 + words]; head 0 is the root.

    Returns:
        The head of each word; 0 for the one that is the root.
    """
    words = len(scores)
    if words == 0:
        return []
    with_root = np.full((words + 1, words + 1), -np.inf)
    with_root[1:] = np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
    np.fill_diagonal(with_root, -np.inf)

    # A second root must cost more than all arcs together can gain
    others = with_root[1:][np.isfinite(with_root[1:])]
    with_root[1:, 0] -= 1 + words * (others.max() - others.min())
    heads = _maximum_arborescence(with_root)
    return [int(head) for head in heads[1:]]


@dataclass(frozen=True, eq=False)
class _Contraction:
    """A cycle that was made one node, the last one of a smaller graph.

    Attributes:
        heads: The best head of each node, before.
        outside: The nodes outside the cycle, in the order of the smaller graph.
        leaving: For each node outside, its best head in the cycle.
        entering: For each node outside, the node of the cycle whose head it would best become.
    """

    heads: Heads
    outside: Heads
    leaving: Heads
    entering: Heads


def _maximum_arborescence(scores: Scores) -> Heads:
    """The heads of the tree below node 0 with the highest sum of scores.

    Args:
        scores: The score of each head of each node [nodes, nodes]; -inf for a node itself, and for
            all heads of node 0.

    Returns:
        The head of each node; of node 0 itself.
    """
    contractions = []
    while True:
        heads: Heads = scores.argmax(axis=1)
        heads[0] = 0
        cycle = _cycle(heads)
        if cycle is None:
            break
        contraction, scores = _contract(scores, heads, cycle)
        contractions.append(contraction)
    for contraction in reversed(contractions):
        heads = _expand(contraction, heads)
    return heads


def _contract(scores: Scores, heads: Heads, cycle: Heads) -> tuple[_Contraction, Scores]:
    """Make a cycle one node. An arc into it replaces one of its own arcs, and scores what it adds
    to that."""
    outside = np.setdiff1d(np.arange(len(scores)), cycle)
    from_cycle = scores[np.ix_(outside, cycle)]
    own_scores = scores[cycle, heads[cycle]]
    into_cycle = scores[np.ix_(cycle, outside)] - own_scores[:, np.newaxis]
    leaving = cycle[from_cycle.argmax(axis=1)]
    entering = cycle[into_cycle.argmax(axis=0)]

    last = len(outside)
    contracted = np.full((last + 1, last + 1), -np.inf)
    contracted[:last, :last] = scores[np.ix_(outside, outside)]
    contracted[:last, last] = from_cycle.max(axis=1)
    contracted[last, :last] = into_cycle.max(axis=0)
    return _Contraction(heads, outside, leaving, entering), contracted


def _expand(contraction: _Contraction, solved: Heads) -> Heads:
    """The heads of a graph, from those of the smaller one: the arc into the cycle breaks it, and
    its other arcs stay."""
    heads = contraction.heads.copy()
    outside = contraction.outside
    last = len(outside)
    for place, node in enumerate(outside[1:], 1):
        head = solved[place]
        heads[node] = contraction.leaving[place] if head == last else outside[head]
    entry = solved[last]
    heads[contraction.entering[entry]] = outside[entry]
    return heads


def _cycle(heads: Heads) -> Heads | None:
    """The nodes of a cycle, or None where all nodes lead to node 0."""
    leads_to_root = {0}
    for node in range(1, len(heads)):
        way: list[int] = []
        place = node
        while place not in leads_to_root:
            if place in way:
                return np.array(way[way.index(place) :])
            way.append(place)
            place = int(heads[place])
        leads_to_root.update(way)
    return None
