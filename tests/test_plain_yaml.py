"""YAML of others: what it says, or one line, in time that is linear in its length."""

from time import process_time

import pytest

from deftx.experiments.plain_yaml import LONGEST_TEXT, MOST_VALUES, BadYaml, parse_yaml

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1", {"a": 1}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        (
            "a: &x {b: 1}\ne: &y {f: 1}\nc:\n  <<: *x\n  <<: *y",
            {"a": {"b": 1}, "e": {"f": 1}, "c": {"b": 1, "f": 1}},
        ),
        ("{1: a, '1': b}", {1: "a", "1": "b"}),
        (f"[{'1,' * 50_000}]", [1] * 50_000),
    ],
)
def test_what_is_yaml_is_read_as_pyyaml_reads_it(text, value):
    assert parse_yaml(text) == value


def bomb(kind, factor=9, levels=30):
    """A few lines that stand for factor ** levels values."""
    first = {"merge": "{k0: 1, k1: 2}", "list": "[x, x]", "mapping": "{k: 1}"}[kind]
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels):
        below = f"*a{level - 1}"
        many = [below] * factor
        body = {
            "merge": f"{{<<: [{','.join(many)}]}}",
            "list": f"[{','.join(many)}]",
            "mapping": "{" + ",".join(f"k{number}: {below}" for number in range(factor)) + "}",
        }[kind]
        lines.append(f"a{level}: &a{level} {body}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "merges": (bomb("merge"), "its references"),
        "lists": (bomb("list"), "its references"),
        "mappings": (bomb("mapping"), "its references"),
        "one by one": (bomb("merge", factor=2, levels=60), "its references"),
        "many values": (f"[{'1,' * (MOST_VALUES + 1)}]", "values"),
        "long": ("a" * (LONGEST_TEXT + 1), "characters"),
        "itself": ("a: &a [*a]", "refers to itself"),
        "itself in a key": ("? &a [*a]\n: 1", "refers to itself"),
        "deep": ("[" * 100_000, "nested too deeply"),
        "deep blocks": ("- " * 50_000 + "a", "nested too deeply"),
        "hex": ("a: 0x" + "f" * 4300, "number of"),
        "decimal": ("a: " + "9" * 5000, "number of"),
        "sexagesimal": ("a: 1" + ":59" * 200_000, "number of"),
        "sexagesimal float": ("a: 1" + ":59" * 200_000 + ".5", "number of"),
        "no date": ("a: 2024-99-99", "month"),
        "no integer": ("!!int ''", ""),
        "no truth value": ("!!bool maybe", ""),
        "no timestamp": ("!!timestamp x", ""),
        "key twice": ("a: 1\nb: 2\na: 3", "the key 'a' comes twice, in line 1 and line 3"),
        "key twice in a line": ("{a: 1, a: 2}", "comes twice"),
        "key twice within": ("b:\n  a: 1\n  a: 2", "line 2 and line 3"),
        "list as a key": ("? [1]\n: 2", "unhashable"),
        "control character": ("a: \x00", "special characters"),
        "unknown tag": ("!!python/object:os.system x", "could not determine a constructor"),
    }.values(),
)
def test_what_is_not_yaml_or_too_much_is_refused_at_once(text, message):
    began = process_time()
    with pytest.raises(BadYaml) as error:
        parse_yaml(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert process_time() - began < 10
