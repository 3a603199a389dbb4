"""Ways to combine vectors besides their plain sum: exact, and for the cost of their entries.

A rule is a row of RULES: what becomes of each vector first (trimmed, thinned out, cut at a depth),
how the values that the vectors have for one entry are joined, what can be set, and where it is
described. In writing, a rule is its name and what is set otherwise than its defaults: `ties`,
`ties:density=0.8,language_scale=1.2`.

Every rule but the sum also takes `language_scale` and `task_scale`, what the vectors of that kind
are multiplied with before anything else. Entries that come to zero are left out of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from deftx.core.parameters import layer_of
from deftx.core.select import select
from deftx.core.vector import (
    SparseTensor,
    SparseVector,
    as_list,
    check_distinct,
    check_same_base,
    check_same_tokenizer,
    derived,
)
from deftx.errors import DeftxError, unknown

LANGUAGE, TASK = "language", "task"
NO_HEAD = "the task vector has no head: give the vector that `deftx fit task` made"

Options = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Term:
    """One of the vectors that are combined: what it is of (LANGUAGE or TASK), and its entries by
    tensor."""

    kind: str
    tensors: Mapping[str, SparseTensor]

    def map(self, change: Callable[[SparseTensor], SparseTensor]) -> "Term":
        """The same with `change` made to the entries of every tensor, in their order."""
        return replace(
            self, tensors={name: change(entries) for name, entries in self.tensors.items()}
        )


@dataclass(frozen=True)
class Option:
    """A number that can be set: its default, which values are allowed, and that in words."""

    default: float
    allowed: Callable[[float], bool]
    words: str


@dataclass(frozen=True)
class Rule:
    """A way to combine vectors.

    each    what becomes of the vectors before they meet
    join    from the values of each vector [vectors, n], 0 where it has no entry, to those of the
            result [n]
    source  where it is described
    """

    each: Callable[[list[Term], Options], list[Term]]
    join: Callable[[Tensor], Tensor]
    options: Mapping[str, Option] = field(default_factory=dict)
    source: str = ""


def merge(
    rule: str = "sum",
    *,
    task: SparseVector | Sequence[SparseVector] = (),
    languages: Sequence[SparseVector] = (),
    head: int | None = None,
    **options: float,
) -> SparseVector:
    """One vector, combined of task and language vectors by a rule of RULES.

    rule       a name, also with options (`ties:density=0.8`)
    task       one task vector, several, or none
    languages  language vectors
    head       of several task vectors with heads, whose is used: 0 is the first
    options    the rule's options; they count more than what `rule` says

    The values are float32, or wider where a vector's are. Raises DeftxError for an unknown rule or
    option, a value that is out of range, two heads without a choice, no vector or the same one
    twice, and vectors that do not fit together.
    """
    check_same_tokenizer(*as_list(task), *languages)
    return _merged(rule, as_list(task), languages, head, options)


def _merged(
    rule: str,
    tasks: Sequence[SparseVector],
    languages: Sequence[SparseVector],
    head: int | None,
    options: Mapping[str, float],
) -> SparseVector:
    """`merge`, of vectors that may have been made with different tokenizers."""
    chosen, given = rule_of(rule, **options)
    vectors = [*languages, *tasks]
    if not vectors:
        raise DeftxError(
            "there is nothing to combine: give a task vector, language vectors, or both"
        )
    check_same_base(*vectors)
    check_distinct(*vectors)
    terms = [Term(LANGUAGE, vector.tensors) for vector in languages] + [
        Term(TASK, vector.tensors) for vector in tasks
    ]
    terms = chosen.each([_scaled(term, given) for term in terms], given)
    names = dict.fromkeys(name for term in terms for name in term.tensors)
    tensors = {name: _joined(name, terms, chosen.join) for name in names}
    top = select_head(tasks, head)
    written = ",".join(
        f"{name}={int(value) if value == int(value) else value}" for name, value in given.items()
    )
    info = derived(f"{rule.partition(':')[0]}:{written}".rstrip(":"), *vectors, top=top)
    return SparseVector(tensors, top.head if top else None, info)


def resolve_terms(
    rule: str,
    task: SparseVector | Sequence[SparseVector],
    languages: Sequence[SparseVector],
    head: int | None = None,
) -> list[SparseVector]:
    """What `apply` is to add to a model: the vectors themselves, one after the other, where the
    rule is the sum (each addition rounds), else what `merge` makes of them."""
    if rule_of(rule)[0] is not RULES["sum"]:
        return [_merged(rule, as_list(task), languages, head, {})]
    tasks = as_list(task)
    top = select_head(tasks, head)
    return [
        *languages,
        *(vector if vector is top else replace(vector, head=None) for vector in tasks),
    ]


def select_head(tasks: Sequence[SparseVector], head: int | None) -> SparseVector | None:
    """The task vector whose head is used: number `head`, or the only one that has any; DeftxError
    if that is open."""
    having = [number for number, vector in enumerate(tasks) if vector.head]
    if head is None and len(having) > 1:
        what = f"{len(having)} task vectors have heads, and a model takes one"
        raise DeftxError(f"{what}: choose it, such as head={having[0]}")
    if head is not None and not having:
        raise DeftxError(NO_HEAD)
    if head is not None and head not in having:
        raise DeftxError(f"head = {head} is not the number of a task vector with a head: {having}")
    return tasks[having[0] if head is None else head] if having else None


def rule_of(text: str, **options: float) -> tuple[Rule, dict[str, float]]:
    """The rule that `NAME` or `NAME:KEY=VALUE,...` means, and all its options, those of `options`
    before the written.

    Raises DeftxError for an unknown rule or option, which lists the known ones, and for a value
    that is out of range.
    """
    name, _, written = text.partition(":")
    if name not in RULES:
        raise unknown("rule", name, RULES)
    rule = RULES[name]
    parts = [part.partition("=") for part in written.split(",") if part]
    given: dict[str, Any] = {**{key.strip(): value for key, _, value in parts}, **options}
    for key, value in given.items():
        if key not in rule.options:
            raise unknown(f"option of {name}", key, rule.options)
        given[key] = _number(value)
        if not rule.options[key].allowed(given[key]):
            raise DeftxError(f"rule {name}: {key} = {value!s}: give {rule.options[key].words}")
    return rule, {key: given.get(key, option.default) for key, option in rule.options.items()}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


# What becomes of each vector first


def _scaled(term: Term, options: Options) -> Term:
    scale = options.get(f"{term.kind}_scale", 1.0)
    return (
        term
        if scale == 1
        else term.map(lambda entries: entries.map(lambda values: _wide(values) * scale))
    )


def _as_they_are(terms: list[Term], options: Options) -> list[Term]:
    return terms


def _trimmed(terms: list[Term], options: Options) -> list[Term]:
    """Of each vector the share `density` of its entries, over all tensors the largest in
    magnitude."""

    def trimmed(term: Term) -> Term:
        values = {name: entries.values for name, entries in term.tensors.items()}
        kept = select(values, round(options["density"] * sum(map(len, values.values()))))
        return replace(
            term,
            tensors={
                name: _at(entries, kept[name].indices) for name, entries in term.tensors.items()
            },
        )

    return [trimmed(term) for term in terms]


def _thinned_out(terms: list[Term], options: Options) -> list[Term]:
    """Each entry dropped with probability `drop`; the others divided by 1 − drop, so that the
    expectation stays."""
    generator = torch.Generator().manual_seed(
        int(options["seed"])
    )  # one for all vectors: they are not dropped alike

    def thinned(entries: SparseTensor) -> SparseTensor:
        drawn = torch.rand(len(entries.indices), generator=generator)
        kept = _at(
            entries, (drawn >= options["drop"]).nonzero().view(-1).to(entries.indices.device)
        )
        return kept.map(lambda values: _wide(values) / (1 - options["drop"]))

    return [term.map(thinned) for term in terms]


def _by_depth(terms: list[Term], options: Options) -> list[Term]:
    """Languages below, tasks above: the embeddings and the share `cut` of the layers, counted from
    the input up to the last that a vector has, are of the languages alone, the others of the tasks.
    Where one of the two is missing, nothing is cut."""
    depths: dict[str, int] = {}
    for stack, _, number in (
        layer_of(name).rpartition(".") for term in terms for name in term.tensors
    ):
        if number.isdigit():
            depths[stack] = max(depths.get(stack, 0), int(number) + 1)

    def lower(name: str) -> bool:
        stack, _, number = layer_of(name).rpartition(".")
        return not number.isdigit() or int(number) + 0.5 < options["cut"] * depths[stack]

    if len({term.kind for term in terms}) == 1:
        return terms
    return [
        replace(
            term,
            tensors={
                name: e
                for name, e in term.tensors.items()
                if lower(name) == (term.kind == LANGUAGE)
            },
        )
        for term in terms
    ]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at(entries: SparseTensor, places: Tensor) -> SparseTensor:
    """The entries at some of their places [n], ascending."""
    return replace(entries, indices=entries.indices[places], values=entries.values[places])


# How the values of one entry are joined: [vectors, n] -> [n]


def _total(values: Tensor) -> Tensor:
    return values.sum(0)


def _elected(values: Tensor) -> Tensor:
    """The values whose sign is that of the total, and 0 for the others [vectors, n]."""
    return values.where(values.sign() == values.sum(0).sign(), 0)


def _mean_of_elected(values: Tensor) -> Tensor:
    elected = _elected(values)
    return elected.sum(0) / (elected != 0).sum(0).clamp_min(1)


def _total_of_elected(values: Tensor) -> Tensor:
    return _elected(values).sum(0)


def _total_where_agreed(values: Tensor) -> Tensor:
    """The sum where no two vectors have opposite signs, else 0."""
    return values.sum(0).where(~((values > 0).any(0) & (values < 0).any(0)), 0)


def _joined(name: str, terms: Sequence[Term], join: Callable[[Tensor], Tensor]) -> SparseTensor:
    """The entries of one tensor, of all vectors that have it."""
    parts = [term.tensors[name] for term in terms if name in term.tensors]
    if len({part.shape for part in parts}) > 1:
        shapes = " and ".join(sorted({str(part.shape) for part in parts}))
        raise DeftxError(
            f"tensor {name!r} has the shapes {shapes} in these vectors: use vectors of one base"
        )
    indices, places = torch.cat([part.indices for part in parts]).unique(return_inverse=True)
    rows = places.split([len(part.indices) for part in parts])
    dtype = reduce(torch.promote_types, (part.values.dtype for part in parts), torch.float32)
    values = torch.zeros(len(parts), len(indices), dtype=dtype, device=indices.device)
    for row, places, part in zip(values, rows, parts, strict=True):
        row[places] = part.values.to(dtype)
    joined = join(values)
    left = joined.nonzero().view(-1)
    return SparseTensor(indices[left], joined[left], parts[0].shape)


SCALES = {f"{kind}_scale": Option(1.0, isfinite, "a finite number") for kind in (LANGUAGE, TASK)}
DENSITY = {"density": Option(0.5, lambda share: 0 < share <= 1, "a share above 0 and at most 1")}
DROP = {
    "drop": Option(0.5, lambda share: 0 <= share < 1, "a share from 0 to below 1"),
    "seed": Option(0, lambda seed: 0 <= seed < 2**32 and seed == int(seed), "an integer from 0 on"),
}
CUT = {"cut": Option(0.5, lambda share: 0 <= share <= 1, "a share from 0 to 1")}

TASK_ARITHMETIC = "Ilharco et al. 2023, https://arxiv.org/abs/2212.04089"
TIES = "Yadav et al. 2023, https://arxiv.org/abs/2306.01708"
DARE = "Yu et al. 2024, https://arxiv.org/abs/2311.03099"
LAYER_SWAPPING = "Bandarkar et al. 2025, https://arxiv.org/abs/2410.01335"

RULES: dict[str, Rule] = {
    "sum": Rule(_as_they_are, _total, {}, "Ansell et al. 2022, https://arxiv.org/abs/2110.07560"),
    "scaled": Rule(_as_they_are, _total, SCALES, TASK_ARITHMETIC),
    "ties": Rule(_trimmed, _mean_of_elected, DENSITY | SCALES, TIES),
    "ties-sum": Rule(
        _trimmed, _total_of_elected, DENSITY | SCALES, f"{TIES}, with the sum in place of the mean"
    ),
    "dare": Rule(_thinned_out, _total, DROP | SCALES, DARE),
    "dare-ties": Rule(
        _thinned_out, _mean_of_elected, DROP | SCALES, f"{DARE}, joined as in {TIES}"
    ),
    "agree": Rule(
        _as_they_are,
        _total_where_agreed,
        SCALES,
        f"the sign conflicts of {TIES}, left out on both sides",
    ),
    "layers": Rule(_by_depth, _total, CUT | SCALES, f"after {LAYER_SWAPPING}"),
}
