"""How strongly vectors are added: scales chosen on labelled data of the source language, so that
none of the target is needed. Why they may carry over: the task is learnt on top of the source's
vector, and what is too strong there is, more often than not, too strong with another language in
its place."""

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


@dataclass(frozen=True)
class Scales:
    """The best scales, their score (0 to 1) and the `rule` to compose with; `scores` has every pair
    that was tried, (language, task) -> score."""

    language: float
    task: float
    score: float
    rule: str
    scores: Mapping[tuple[float, float], float] = field(repr=False)


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

    base, task  the base, and the task vector with its head
    source      the language vector of the language of `valid`
    valid       labelled data that nothing was trained on; the task's own validation data will do
    grid        the scales that are tried, for each of the two, in all pairs; 1 is always among them
    rule        how vectors are combined: any of `merge` that takes scales
    metric      None: the one of the task's training
    ignore_base_mismatch    go on, with a warning, where the base has other weights than the
                            vectors' base

    The base is loaded once; each pair is applied and undone. Of equal scores the pair nearest to
    (1, 1) counts, of equally near ones the smaller, so that the same data always give the same
    scales. Raises DeftxError as `compose` does, for a rule without scales, and for an unknown
    metric.
    """
    check_examples(valid)
    kind = task_type(task)
    metric = metric or task.info.get("training", {}).get("metric") or next(iter(kind.metrics))
    if metric not in kind.metrics:
        raise unknown("metric", metric, kind.metrics)
    tried = sorted({*map(float, grid), 1.0})
    rules = {
        (first, second): _with_scales(rule, first, second)
        for first, second in product(tried, tried)
    }
    for written in rules.values():
        rule_of(written)
    check_pairs(uses_text_pairs(task), valid)
    tokenizer = load_tokenizer(base)
    model = load_base_with_head(
        base, task, [source], tokenizer=tokenizer, ignore_base_mismatch=ignore_base_mismatch
    )
    place(model)
    length, scores = trained_length(model, tokenizer, task), {}
    for pair, written in rules.items():
        with apply_temporarily(model, *resolve_terms(written, task, [source])):
            scores[pair] = evaluate(kind, model, tokenizer, valid, length)[metric]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(
        scores, key=lambda pair: (sign * scores[pair], -sum((scale - 1) ** 2 for scale in pair))
    )
    return Scales(best[0], best[1], scores[best], rules[best], scores)


def _with_scales(rule: str, language: float, task: float) -> str:
    return f"{rule}{',' if ':' in rule else ':'}language_scale={language},task_scale={task}"
