"""Of what kind a head is, by the names and shapes of its tensors."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from deftx.errors import DeftxError
from deftx.tasks.parsing import UNIVERSAL_RELATIONS

# The first parts of the names in heads of the tasks that are known
KNOWN_HEADS = (
    "biaffine_arcs",
    "biaffine_rels",
    "classification_head",
    "classifier",
    "head",
    "logits_proj",
    "pooler",
    "pre_classifier",
    "qa_outputs",
    "score",
    "sequence_summary",
)
PARSER_ARCS, PARSER_RELATIONS = "biaffine_arcs.weight", "biaffine_rels.weight"


def is_parser(head: Mapping[str, Tensor]) -> bool:
    """Whether a head is that of a biaffine parser, such as LT-SFT's."""
    return PARSER_ARCS in head


def usual_names(outputs: int, head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What a head's outputs are called where nobody names them: numbers, except for a parser with
    as many relations as LT-SFT's, which are the universal ones."""
    if is_parser(head) and outputs == len(UNIVERSAL_RELATIONS):
        return tuple(UNIVERSAL_RELATIONS)
    return tuple(f"LABEL_{number}" for number in range(outputs))


def check_known_head(folder: Path, head: Mapping[str, Tensor], prefix: str) -> None:
    """Check that a head is of a kind that some task has.

    Args:
        folder: The vector that has it.
        head: Its tensors by their names in the task model.
        prefix: What the backbone's names begin with, with its dot.

    Raises:
        DeftxError: It is of another kind, or a parser's of another form.
    """
    for name in head:
        first_part = name.removeprefix(prefix).split(".")[0]
        if first_part not in KNOWN_HEADS:
            raise DeftxError(
                f"{folder} has the head {name!r:.80}, of an unknown kind: known heads are "
                f"{', '.join(KNOWN_HEADS)}"
            )
    if PARSER_ARCS in head or PARSER_RELATIONS in head:
        _check_parser(folder, head)


def check_kind(kind: str, head: Mapping[str, Tensor]) -> None:
    """Check that a head that is said to be a parser's is one, and no other.

    Raises:
        DeftxError: It is not so.
    """
    if is_parser(head) == (kind == "parsing"):
        return
    if is_parser(head):
        raise DeftxError(f"kind {kind}: the head has {PARSER_ARCS!r}: say kind parsing, or none")
    raise DeftxError(f"kind {kind}: the head has no {PARSER_ARCS!r}: say its own kind")


def _check_parser(folder: Path, head: Mapping[str, Tensor]) -> None:
    shapes = []
    for name in (PARSER_ARCS, PARSER_RELATIONS):
        if name not in head:
            raise DeftxError(f"{folder} has a parser's head without {name!r}: convert a whole one")
        shapes.append(tuple(head[name].shape))
    arcs, relations = shapes
    width = arcs[-1]
    if arcs != (1, width + 1, width) or relations[1:] != (width + 1, width + 1):
        raise DeftxError(
            f"{folder} has a parser's head of the shapes {arcs} and {relations}: only LT-SFT's are "
            "read, (1, width + 1, width) and (relations, width + 1, width + 1)"
        )
