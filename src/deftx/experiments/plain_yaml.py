"""YAML that others wrote, read in time that is linear in its length.

Aliases (`*`) and merges (`<<`) can multiply a few lines to any number of values, so what they stand
for is counted before anything is made of it.
"""

from itertools import chain
from typing import Any

import yaml

LONGEST_TEXT = 1_000_000  # characters
MOST_VALUES = 100_000  # each counted as often as it is referred to
LONGEST_NUMBER = (
    100  # characters: such as 1:1:1:... take quadratic time, and 0xfff... cannot be printed
)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"
# what PyYAML raises for values that are not of the type that their tag or form says, such as a date
# 2024-99-99
_NOT_OF_ITS_TYPE = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


class BadYaml(ValueError):
    """A text that is not YAML, or more of it than is read: the message says what is wrong, in one
    line."""


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        BadYaml: It is not YAML, too long, has too many values, a number without end, or a key
            twice.
    """
    if len(text) > LONGEST_TEXT:
        raise BadYaml(f"it has more than {LONGEST_TEXT:,} characters")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _count_values(root, {})
        return loader.construct_document(root)
    except BadYaml:
        raise
    except RecursionError:
        raise BadYaml("it is nested too deeply") from None
    except (yaml.YAMLError, *_NOT_OF_ITS_TYPE) as error:
        raise BadYaml(" ".join(str(error).split())) from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_values(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """How many values a node stands for, those that it refers to among them.

    Args:
        node: The node.
        counted: The counts of nodes that were met before, by their ids; None for those that are
            being counted. What refers to one of the latter holds itself.

    Raises:
        BadYaml: As `parse_yaml` does.
    """
    if id(node) in counted:
        before = counted[id(node)]
        if before is None:
            raise BadYaml("a value refers to itself (*)")
        return before
    counted[id(node)] = None
    count = 1
    for inner in _inner_nodes(node):
        count += _count_values(inner, counted)
        if count > MOST_VALUES:
            raise BadYaml(
                f"it has more than {MOST_VALUES:,} values: its references (*) multiply them"
            )
    counted[id(node)] = count
    return count


def _inner_nodes(node: yaml.Node) -> list[yaml.Node]:
    """The nodes within a node.

    Raises:
        BadYaml: A number is too long, or a key comes twice.
    """
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        return list(chain.from_iterable(node.value))  # keys and values
    if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise BadYaml(
            f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters"
        )
    return []


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line = key.start_mark.line + 1
        name = (key.tag, key.value)
        if name in lines:
            where = f"in line {lines[name]} and line {line}"
            raise BadYaml(f"the key {key.value!r:.100} comes twice, {where}: keep one")
        lines[name] = line
