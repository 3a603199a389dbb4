"""Only public interfaces of other libraries are used: their private ones change with every
release."""

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import deftx

SOURCE = Path(deftx.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# `file: name` -> why there is no public way
ALLOWED = {
    "experiments/executors.py: _exit": "a public function of os, whatever its name looks like"
}


def is_private(name: str) -> bool:
    """One underscore in front: two, as in `__torch_function__`, are the language's and protocols'
    names."""
    return bool(re.match(r"_[^_]", name))


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a module itself defines: functions, classes, variables and attributes of
    self."""
    defined = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    stored = [
        n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    ]
    attributes = {
        node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    return {name for name in defined | names | attributes if is_private(name)}


def foreign_privates(code: str) -> Iterator[str]:
    """The private names that `code` takes from elsewhere: attributes, imports, and names given to
    getattr."""
    tree = ast.parse(code)
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("deftx"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from filter(is_private, parts)
        elif isinstance(node, ast.Import):
            yield from (
                part for alias in node.names for part in alias.name.split(".") if is_private(part)
            )
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr")
        ):
            text = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(text, str) and is_private(text) and text not in own:
                yield text


@pytest.mark.parametrize(
    "code",
    [
        "model._tied_weights_keys",
        "from torch._dynamo import config",
        "import torch._inductor",
        "from transformers.trainer import _is_peft_model",
        "getattr(trainer, '_inner_training_loop')",
        "trainer._signature_columns = None\ntrainer._train_batch_size",
    ],
)
def test_a_private_name_of_another_library_is_found(code: str) -> None:
    assert list(foreign_privates(code))


def test_our_own_private_names_are_not_taken_for_others() -> None:
    assert not list(
        foreign_privates("class A:\n    def _b(self): ...\n    def c(self): return self._b()")
    )


def test_no_private_name_of_another_library_is_used() -> None:
    assert len(FILES) > 20
    found = {
        f"{file.relative_to(SOURCE)}: {name}"
        for file in FILES
        for name in foreign_privates(file.read_text("utf-8"))
    }
    assert found == ALLOWED.keys()


def test_no_private_method_of_another_library_is_overridden() -> None:
    """A class of ours that is built on another library's defines none of its private methods
    anew."""
    modules = [
        import_module(module.name) for module in pkgutil.walk_packages(deftx.__path__, "deftx.")
    ]
    classes = {
        kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)
    }
    ours = [kind for kind in classes if kind.__module__.startswith("deftx")]
    overridden = [
        f"{kind.__qualname__}.{name}"
        for kind in ours
        for name, thing in vars(kind).items()
        if is_private(name) and inspect.isfunction(thing) and thing.__module__.startswith("deftx")
        for base in kind.__mro__[1:]
        if not base.__module__.startswith("deftx") and name in vars(base)
    ]
    assert len(ours) > 50
    assert overridden == []
