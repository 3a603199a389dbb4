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
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from deftx.core.parameters import layer_of
from deftx.core.select import select
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector, check_same_base, derived
from deftx.core.vector_checks import as_list, check_distinct, check_same_tokenizer
from deftx.errors import DeftxError, unknown

LANGUAGE = "language"
TASK = "task"
NO_HEAD = "the task vector has no head: give the vector that `deftx fit task` made"

Options = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Term:
    """One of the vectors that are combined.

    Attributes:
        kind: LANGUAGE or TASK.
        tensors: Tensor name -> entries.
    """

    kind: str
    tensors: Mapping[str, SparseTensor]

    def map(self, change: Callable[[SparseTensor], SparseTensor]) -> "Term":
        """The same with `change` applied to the entries of every tensor, in their order."""
        tensors = {name: change(entries) for name, entries in self.tensors.items()}
        return replace(self, tensors=tensors)


@dataclass(frozen=True)
class Option:
    """A number that can be set.

    Attributes:
        default: What it is where it is not set.
        allowed: Whether a value is allowed.
        words: The allowed values in words.
    """

    default: float
    allowed: Callable[[float], bool]
    words: str


@dataclass(frozen=True)
class Rule:
    """A way to combine vectors.

    Attributes:
        each: What becomes of the vectors before they are joined.
        join: From the values of each vector [vectors, n], 0 where it has no entry, to those of the
            result [n].
        options: What can be set.
        source: Where it is described.
    """

    each: Callable[[list[Term], Options], list[Term]]
    join: Callable[[Tensor], Tensor]
    options: Mapping[str, Option] = field(default_factory=dict)
    source: str = ""


def merge(
    rule: str = "sum",
    *,
    task: SparseVector | Sequence[SparseVector] | None = None,
    language: SparseVector | Sequence[SparseVector] | None = None,
    head: int | None = None,
    **options: float,
) -> SparseVector:
    """Combine task and language vectors into one vector by a rule of RULES.

    The values are float32, or wider where a vector's are.

    Args:
        rule: A name, also with options (`ties:density=0.8`).
        task: One task vector, several, or none.
        language: One language vector, several, or none.
        head: Of several task vectors with heads, whose is used: 0 is the first.
        options: The rule's options; they override those in `rule`.

    Raises:
        DeftxError: An unknown rule or option, a value that is out of range, two heads without a
            choice, no vector or the same one twice, and vectors that do not fit together.

    Example:
        >>> import torch
        >>> from deftx import SparseTensor, SparseVector, merge
        >>> def vector(value):
        ...     entries = SparseTensor(torch.tensor([0]), torch.tensor([value]), (2,))
        ...     return SparseVector({"weight": entries})
        >>> both = merge("scaled", task=vector(1.0), language=vector(3.0), language_scale=0.5)
        >>> both["weight"].to_dense()
        tensor([2.5000, 0.0000])
    """
    tasks = [] if task is None else as_list(task)
    languages = [] if language is None else as_list(language)
    check_same_tokenizer(*tasks, *languages)
    return _merge(rule, tasks, languages, head, options)


def _merge(
    rule: str,
    tasks: Sequence[SparseVector],
    languages: Sequence[SparseVector],
    head: int | None,
    options: Options,
) -> SparseVector:
    """`merge`, of vectors that may have been made with different tokenizers."""
    chosen, values = rule_of(rule, **options)
    vectors = [*languages, *tasks]
    if not vectors:
        problem = "there is nothing to combine"
        raise DeftxError(f"{problem}: give a task vector, language vectors, or both")
    check_same_base(*vectors)
    check_distinct(*vectors)

    # What the rule does with each vector
    terms = [Term(LANGUAGE, vector.tensors) for vector in languages]
    terms += [Term(TASK, vector.tensors) for vector in tasks]
    scaled = [_scaled(term, values) for term in terms]
    terms = chosen.each(scaled, values)

    # The entries of all vectors, joined tensor by tensor
    tensors: dict[str, SparseTensor] = {}
    for term in terms:
        for name in term.tensors:
            if name not in tensors:
                tensors[name] = _joined(name, terms, chosen.join)

    with_head = select_head(tasks, head)
    provenance = derived(_written(rule, values), *vectors, top=with_head)
    if with_head is None:
        return SparseVector(tensors, None, provenance)
    return SparseVector(tensors, with_head.head, provenance)


def _written(rule: str, options: Options) -> str:
    """A rule with all its options, such as `ties:density=0.8,language_scale=1`."""
    name = rule.partition(":")[0]
    parts = []
    for key, value in options.items():
        number = int(value) if value == int(value) else value
        parts.append(f"{key}={number}")
    if not parts:
        return name
    return f"{name}:{','.join(parts)}"


def resolve_terms(
    rule: str,
    task: SparseVector | Sequence[SparseVector],
    languages: Sequence[SparseVector],
    head: int | None = None,
) -> list[SparseVector]:
    """The vectors that `apply` is to add to a model, one after the other (each addition rounds).

    Where the rule is the sum these are the vectors themselves, else the one that `merge` makes of
    them.
    """
    tasks = as_list(task)
    chosen, _ = rule_of(rule)
    if chosen is not RULES["sum"]:
        return [_merge(rule, tasks, languages, head, {})]
    with_head = select_head(tasks, head)
    terms = list(languages)
    for vector in tasks:
        if vector is with_head:
            terms.append(vector)
        else:
            terms.append(replace(vector, head=None))
    return terms


def select_head(tasks: Sequence[SparseVector], head: int | None) -> SparseVector | None:
    """The task vector whose head is used; None where no vector has a head and none is asked for.

    Args:
        tasks: The task vectors.
        head: The number of the vector; None: the only one that has a head.

    Raises:
        DeftxError: Several have heads and none is chosen, or the chosen one has none.
    """
    numbers = [number for number, vector in enumerate(tasks) if vector.head is not None]
    if head is None:
        if len(numbers) > 1:
            what = f"{len(numbers)} task vectors have heads, and a model takes one"
            raise DeftxError(f"{what}: choose it, such as head={numbers[0]}")
        return tasks[numbers[0]] if numbers else None
    if not numbers:
        raise DeftxError(NO_HEAD)
    if head not in numbers:
        raise DeftxError(f"head = {head} is not the number of a task vector with a head: {numbers}")
    return tasks[head]


def rule_of(text: str, **options: float) -> tuple[Rule, dict[str, float]]:
    """The rule that `NAME` or `NAME:KEY=VALUE,...` means, and the values of all its options.

    Args:
        text: The rule as it is written.
        options: Options that override the written ones.

    Raises:
        DeftxError: An unknown rule or option, with the known ones, or a value out of range.
    """
    name, _, written = text.partition(":")
    if name not in RULES:
        raise unknown("rule", name, RULES)
    rule = RULES[name]

    # What is set
    values: dict[str, Any] = {}
    for part in written.split(","):
        if part:
            key, _, value = part.partition("=")
            values[key.strip()] = value
    values |= options

    # Checked, and the defaults of the others
    for key, value in values.items():
        if key not in rule.options:
            raise unknown(f"option of {name}", key, rule.options)
        option = rule.options[key]
        values[key] = _number_or_nan(value)
        if not option.allowed(values[key]):
            raise DeftxError(f"rule {name}: {key} = {value!s}: give {option.words}")
    complete = {key: values.get(key, option.default) for key, option in rule.options.items()}
    return rule, complete


def _number_or_nan(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


# What becomes of each vector first


def _scaled(term: Term, options: Options) -> Term:
    """The vector times the scale of its kind."""
    scale = options.get(f"{term.kind}_scale", 1.0)
    if scale == 1:
        return term
    return term.map(lambda entries: entries.map(lambda values: _wide(values) * scale))


def _as_they_are(terms: list[Term], options: Options) -> list[Term]:
    return terms


def _trimmed(terms: list[Term], options: Options) -> list[Term]:
    """Of each vector the share `density` of its entries, the largest in magnitude over all
    tensors."""
    return [_trimmed_to(term, options["density"]) for term in terms]


def _trimmed_to(term: Term, density: float) -> Term:
    values = {name: entries.values for name, entries in term.tensors.items()}
    count = sum(len(entries) for entries in values.values())
    kept = select(values, round(density * count))
    tensors: dict[str, SparseTensor] = {}
    for name, entries in term.tensors.items():
        tensors[name] = _at(entries, kept[name].indices)
    return replace(term, tensors=tensors)


def _thinned_out(terms: list[Term], options: Options) -> list[Term]:
    """Each entry dropped with probability `drop`; the others divided by 1 − drop, so that the
    expectation stays."""
    drop = options["drop"]
    seed = int(options["seed"])
    generator = torch.Generator().manual_seed(seed)  # one for all: each vector drops others

    def thinned(entries: SparseTensor) -> SparseTensor:
        drawn = torch.rand(len(entries.indices), generator=generator)
        places = (drawn >= drop).nonzero().view(-1)
        kept = _at(entries, places.to(entries.indices.device))
        return kept.map(lambda values: _wide(values) / (1 - drop))

    return [term.map(thinned) for term in terms]


def _by_depth(terms: list[Term], options: Options) -> list[Term]:
    """Languages in the lower layers, tasks in the upper ones.

    The embeddings and the share `cut` of the layers, counted from the input up to the last that a
    vector has, are of the languages alone, the others of the tasks. Where there are only languages
    or only tasks, nothing is cut.
    """
    kinds = {term.kind for term in terms}
    if len(kinds) == 1:
        return terms

    # The number of layers of each stack (encoder, decoder)
    depths: dict[str, int] = {}
    for term in terms:
        for name in term.tensors:
            stack, number = _stack_and_number(name)
            if number is not None:
                depths[stack] = max(depths.get(stack, 0), number + 1)

    def is_lower(name: str) -> bool:
        stack, number = _stack_and_number(name)
        return number is None or number + 0.5 < options["cut"] * depths[stack]

    result = []
    for term in terms:
        wants_lower = term.kind == LANGUAGE
        tensors = {n: part for n, part in term.tensors.items() if is_lower(n) == wants_lower}
        result.append(replace(term, tensors=tensors))
    return result


def _stack_and_number(name: str) -> tuple[str, int | None]:
    """The stack of layers that a tensor is in and the layer's number, None outside the layers."""
    stack, _, number = layer_of(name).rpartition(".")
    return stack, int(number) if number.isdigit() else None


def _wide(values: Tensor) -> Tensor:
    """In float32, or wider where they are."""
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
    has_positive = (values > 0).any(0)
    has_negative = (values < 0).any(0)
    return values.sum(0).where(~(has_positive & has_negative), 0)


def _joined(name: str, terms: Sequence[Term], join: Callable[[Tensor], Tensor]) -> SparseTensor:
    """The entries of one tensor, of all vectors that have it; what comes to zero is left out."""
    parts = [term.tensors[name] for term in terms if name in term.tensors]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        listing = " and ".join(sorted(str(shape) for shape in shapes))
        fix = "use vectors of one base"
        raise DeftxError(f"tensor {name!r} has the shapes {listing} in these vectors: {fix}")

    # The values [vectors, n] at the union of the indices [n]
    all_indices = torch.cat([part.indices for part in parts])
    indices, columns = all_indices.unique(return_inverse=True)
    sizes = [len(part.indices) for part in parts]
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.values.dtype)
    values = torch.zeros(len(parts), len(indices), dtype=dtype, device=indices.device)
    for row, own_columns, part in zip(values, columns.split(sizes), parts, strict=True):
        row[own_columns] = part.values.to(dtype)

    joined = join(values)
    nonzero = joined.nonzero().view(-1)
    return SparseTensor(indices[nonzero], joined[nonzero], parts[0].shape)


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
