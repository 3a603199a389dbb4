"""What `import deftx` offers, and a training loop of one's own."""

import inspect
import typing
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForMaskedLM

import deftx
from deftx.errors import DeftxError


def test_the_public_names_are_all_there():
    assert sorted(name for names in deftx._HOMES.values() for name in names) == sorted(
        {*deftx.__all__} - {"DeftxError", "Diverged", "Locked", "NoSpace"}
    )
    assert all(callable(getattr(deftx, name)) for name in dir(deftx) if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        deftx.lode  # noqa: B018


def classes_of(hint) -> Iterator[type]:
    """The classes of deftx in a type hint."""
    for part in typing.get_args(hint):
        yield from classes_of(part)
    if isinstance(hint, type) and hint.__module__.startswith("deftx."):
        yield hint


def test_what_public_functions_take_and_return_is_public():
    found = set()
    for name in deftx.__all__:
        value = getattr(deftx, name)
        functions = [value]
        if isinstance(value, type):
            functions = [method for key, method in vars(value).items() if not key.startswith("_")]
        for function in functions:
            if inspect.isfunction(function):
                for hint in typing.get_type_hints(inspect.unwrap(function)).values():
                    found.update(classes_of(hint))
    assert {deftx.SparseMask, deftx.Denoised, deftx.SparseTuning, deftx.Examples} <= found
    hidden = {cls for cls in found if getattr(deftx, cls.__name__, None) is not cls}
    assert {cls.__name__ for cls in hidden} == set()


def test_all_errors_are_public():
    for name, error in vars(deftx.errors).items():
        if isinstance(error, type) and issubclass(error, Exception):
            assert getattr(deftx, name) is error


def test_a_training_loop_of_ones_own_makes_a_vector(home):
    base = home / "base"
    finetuned, model = (AutoModelForMaskedLM.from_pretrained(base) for _ in range(2))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    delta = deftx.delta(finetuned, base)
    for same in (deftx.delta(finetuned, model), deftx.delta(finetuned, start)):
        assert same.keys() == delta.keys()
        assert all(torch.equal(same[name], delta[name]) for name in delta)
    assert not any("LayerNorm" in name for name in delta)
    selection = deftx.select(deftx.denoise(delta, rank=0.9), k="2.8%")
    with deftx.sparse_tuning(model, selection) as tuning:
        optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
        ids = torch.tensor([[0, 5, 6, 2]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    vector = tuning.vector()
    assert vector.k == round(0.028 * 5552)
    moved = deftx.delta(model, start)
    assert all(
        torch.allclose(moved[name], entries.to_dense()) for name, entries in vector.tensors.items()
    )
    assert any(tensor.any() for tensor in moved.values())


def test_a_delta_to_another_shape_of_base_is_refused(home, bases):
    with pytest.raises(DeftxError, match="missing in the base, or of another shape"):
        deftx.delta(home / "base", bases("distilbert"))
