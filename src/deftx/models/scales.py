"""How strongly vectors are added: scales chosen on labelled data of the source language, so that no
labelled data of the target language is needed.

Why they may carry over: the task is trained on top of the source's vector. What is too strong with
the source's vector is likely to be too strong with another language's vector too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from deftx.core.apply import apply_temporarily
from deftx.core.merge import resolve_terms, rule_of
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples, check_examples, check_pairs
from deftx.errors import unknown
from deftx.models.compose import load_base_with_head, task_type, trained_length, uses_text_pairs
from deftx.models.loading import Base, place
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import LOWER_IS_BETTER, evaluate

GRID = (0.6, 0.8, 1.0, 1.2, 1.4)

Pair = tuple[float, float]  # scales of language and task vector


@dataclass(frozen=True)
class Scales:
    """The scales that score best.

    Attributes:
        language: Scale of the language vector.
        task: Scale of the task vector.
        score: Their score (0 to 1).
        rule: The rule to compose with.
        scores: The scores of all pairs that were tried: (language, task) -> score.
    """

    language: float
    task: float
    score: float
    rule: str
    scores: Mapping[Pair, float] = field(repr=False)


def tune_scales(
    base: Base,
    task: SparseVector,
    source: SparseVector,
    valid: Examples,
    grid: Sequence[float] = GRID,
    *,
    rule: str = "scaled",
    metric: str | None = None,
    ignore_base_mismatch: bool = False,
) -> Scales:
    """The scales of language and task vector that score best with the source's vector on the
    source's data.

    The base is loaded once; each pair of scales is applied and undone. Of pairs with equal scores
    the one nearest to (1, 1) is chosen, and of equally near ones the smaller, so that the same data
    always give the same scales.

    Args:
        base: Folder or hub id.
        task: The task vector with its head.
        source: The language vector of the language of `valid`.
        valid: Labelled data that nothing was trained on; the task's own validation data will do.
        grid: The scales that are tried for each of the two vectors, in all pairs, and 1.
        rule: How vectors are combined: any rule of `merge` that takes scales.
        metric: What the pairs are judged by; None: the metric of the task's training.
        ignore_base_mismatch: Warn, instead of raising, where the base has other weights than the
            vectors' base.

    Raises:
        DeftxError: The rule takes no scales, the metric is unknown; and as `compose` does.
    """
    check_examples(valid)
    kind = task_type(task)
    if metric is None:
        metric = task.provenance.training.metric or next(iter(kind.metrics))
    if metric not in kind.metrics:
        raise unknown("metric", metric, kind.metrics)

    # All rules are checked before the base is loaded
    scales = sorted({*map(float, grid), 1.0})
    rules: dict[Pair, str] = {}
    for language_scale, task_scale in product(scales, scales):
        rules[language_scale, task_scale] = _with_scales(rule, language_scale, task_scale)
    for scaled_rule in rules.values():
        rule_of(scaled_rule)
    check_pairs(uses_text_pairs(task), valid)

    tokenizer = load_tokenizer(base)
    model = load_base_with_head(
        base, task, [source], tokenizer=tokenizer, ignore_base_mismatch=ignore_base_mismatch
    )
    place(model)
    length = trained_length(model, tokenizer, task)
    scores: dict[Pair, float] = {}
    for pair, scaled_rule in rules.items():
        with apply_temporarily(model, *resolve_terms(scaled_rule, task, [source])):
            scores[pair] = evaluate(kind, model, tokenizer, valid, length)[metric]

    sign = -1 if metric in LOWER_IS_BETTER else 1

    def preference(pair: Pair) -> tuple[float, float]:
        """The score, larger being better, and then how near a pair is to (1, 1)."""
        squared_distance = sum((scale - 1) ** 2 for scale in pair)
        return sign * scores[pair], -squared_distance

    best = max(scores, key=preference)
    language_scale, task_scale = best
    return Scales(language_scale, task_scale, scores[best], rules[best], scores)


def _with_scales(rule: str, language_scale: float, task_scale: float) -> str:
    """A rule such as `ties` or `ties:density=0.2` with these scales."""
    separator = "," if ":" in rule else ":"
    return f"{rule}{separator}language_scale={language_scale},task_scale={task_scale}"
