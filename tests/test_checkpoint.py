"""A training that is cut off anywhere goes on from its checkpoint and ends as if nothing had been,
bit for bit."""

import errno
import os
import random
import resource

import pytest
import tiny
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID, labelled, same
from safetensors.torch import load_file
from vector_examples import vector

from deftx.config import changed
from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError, Diverged
from deftx.fit import fit_language, fit_task
from deftx.models.loading import load_language_model
from deftx.objectives.masked_lm import MaskedLM
from deftx.storage import tensors
from deftx.tasks.base import Supervised
from deftx.training import resume


class Cut(BaseException):
    """The end of the process: nothing handles it."""


@pytest.fixture
def always(monkeypatch):
    """A checkpoint before every step."""
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "LARGEST_SHARE_OF_TIME", 1e9)


@pytest.fixture
def cut(monkeypatch):
    """`cut(n)`: the n-th loss from now on is not lived to see."""
    left = [0]

    def ending(loss):
        def call(self, model, batch):
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            return loss(self, model, batch)

        return call

    for objective in (MaskedLM, Supervised):
        monkeypatch.setattr(objective, "loss", ending(objective.loss))
    return lambda losses: left.__setitem__(0, losses)


def until_done(fit, cut, lives):
    """What `fit` gives when it is started again after each of the `lives`, which end at their n-th
    loss; cuts taken."""
    for number, losses in enumerate(lives):
        cut(losses)
        try:
            return fit(), number
        except Cut:
            continue
    cut(0)
    return fit(), len(lives)


def until_cut(fit, cut, losses):
    cut(losses)
    with pytest.raises(Cut):
        fit()
    cut(0)


MORE = {"max_steps": 9, "evaluate_every": 4, "batch_size": 4, "epochs": 9}
CASES = {
    "language": lambda base, checkpoint_dir: fit_language(
        base, TEXT, changed(LANGUAGE, {"training": MORE}), checkpoint_dir=checkpoint_dir
    ),
    "language, short phase 1": lambda base, checkpoint_dir: fit_language(
        base,
        TEXT,
        changed(LANGUAGE, {"phase1_steps": 5, "training": MORE}),
        checkpoint_dir=checkpoint_dir,
    ),
    "language, accumulating": lambda base, checkpoint_dir: fit_language(
        base,
        tiny.sentences(90),
        changed(LANGUAGE, {"training": {**MORE, "batch_size": 2, "accumulate": 3}}),
        checkpoint_dir=checkpoint_dir,
    ),
    "language, ranks of two halves": lambda base, checkpoint_dir: fit_language(
        base,
        TEXT,
        changed(LANGUAGE, {"rank": "split-half", "training": MORE}),
        checkpoint_dir=checkpoint_dir,
    ),
    "task": lambda base, checkpoint_dir: fit_task(
        base, TRAIN, VALID, changed(TASK, {"training": MORE}), checkpoint_dir=checkpoint_dir
    ),
    "task, averaging": lambda base, checkpoint_dir: fit_task(
        base,
        TRAIN,
        VALID,
        changed(TASK, {"training": {**MORE, "evaluate_every": 2, "average": 3}}),
        checkpoint_dir=checkpoint_dir,
    ),
    "task, several languages": lambda base, checkpoint_dir: fit_task(
        base,
        {"a": labelled(13, 5), "b": labelled(5, 6)},
        {"a": VALID, "b": VALID},
        changed(TASK, {"training": MORE}),
        source={"a": vector(base, 1), "b": vector(base, 2)},
        checkpoint_dir=checkpoint_dir,
    ),
    "task, accumulating": lambda base, checkpoint_dir: fit_task(
        base,
        labelled(23, 1),
        VALID,
        changed(TASK, {"training": {**MORE, "accumulate": 2}}),
        checkpoint_dir=checkpoint_dir,
    ),
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_cut_off_ends_bit_for_bit_as_one_that_is_not(bases, tmp_path, cut, case):
    """Evaluated and logged at other steps than it is cut off at; several epochs; dropout and
    masking draw at random."""
    whole, draw = CASES[case](bases(), None), random.Random(case)
    lives = [draw.randint(1, 7) for _ in range(40)]
    vector, cuts = until_done(lambda: CASES[case](bases(), tmp_path), cut, lives)
    assert cuts >= 4
    assert same(vector, whole)
    assert vector.provenance == whole.provenance


SPIEL = {"method": "spiel-ag", "reselection": {"every": 4, "window": 3, "share": 0.5}}
ONE_TRAINING = {
    "language, spiel-ag, accumulating": lambda base, checkpoint_dir: fit_language(
        base,
        tiny.sentences(90),
        changed(LANGUAGE, SPIEL | {"training": {**MORE, "batch_size": 2, "accumulate": 3}}),
        checkpoint_dir=checkpoint_dir,
    ),
    "task, spiel-ma": lambda base, checkpoint_dir: fit_task(
        base,
        TRAIN,
        VALID,
        changed(TASK, SPIEL | {"method": "spiel-ma", "training": MORE}),
        checkpoint_dir=checkpoint_dir,
    ),
    "task, spiel-deftx, several languages": lambda base, checkpoint_dir: fit_task(
        base,
        {"a": labelled(13, 5), "b": labelled(5, 6)},
        {"a": VALID, "b": VALID},
        changed(TASK, SPIEL | {"method": "spiel-deftx", "training": MORE}),
        source={"a": vector(base, 1), "b": vector(base, 2)},
        checkpoint_dir=checkpoint_dir,
    ),
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("case", ONE_TRAINING)
def test_entries_that_are_chosen_meanwhile_are_resumed_after_every_step(bases, tmp_path, cut, case):
    """Each life is one step long."""
    fit = ONE_TRAINING[case]
    whole = fit(bases(), None)
    losses_of_step = 3 if "accumulating" in case else 1
    lives = [losses_of_step + 1] * 40
    vector, cuts = until_done(lambda: fit(bases(), tmp_path), cut, lives)
    assert cuts == 8
    assert same(vector, whole)
    assert vector.provenance == whole.provenance


# --- what is kept, and for whom ---

STATE1, STATE2 = "phase1.state.safetensors", "phase2.state.safetensors"


def language(base, checkpoint_dir, change=None, text=TEXT):
    return fit_language(base, text, changed(LANGUAGE, change or {}), checkpoint_dir=checkpoint_dir)


@pytest.mark.usefixtures("always")
def test_in_phase_2_four_numbers_are_kept_for_each_entry_and_nothing_of_the_model(
    bases, tmp_path, cut
):
    until_cut(lambda: language(bases(), tmp_path), cut, 8)
    assert sorted(os.listdir(tmp_path)) == ["phase1.safetensors", STATE2]
    kept = {name: tensor.numel() for name, tensor in load_file(tmp_path / STATE2).items()}
    k = language(bases(), None).k
    of_entries = {name: size for name, size in kept.items() if name.endswith(".0") or ".0." in name}
    assert of_entries == {
        **dict.fromkeys(["value.0", "best.0", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"], k),
        "optimizer.0.step": 1,
    }
    heads = len(parameter_groups(load_language_model(bases(), lm_head="trained")).trained_head)
    assert len(kept) == (1 + heads) * len(of_entries)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "change",
    [
        {"training": {"learning_rate": 2e-2}},
        {"training": {"max_steps": 5}},
        {"training": {"l1": 0.0}},
        {"seed": 1},
    ],
)
def test_a_state_of_other_settings_is_not_taken_in_phase_1(bases, tmp_path, cut, change):
    until_cut(lambda: language(bases(), tmp_path), cut, 4)
    assert os.listdir(tmp_path) == [STATE1]
    assert same(language(bases(), tmp_path, change), language(bases(), None, change))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "change",
    [{"k": "4%"}, {"rank": 2}, {"method": "lt-sft"}, {"keep": 0.5}, {"training": {"average": 2}}],
)
def test_a_state_of_other_settings_is_not_taken_in_phase_2(bases, tmp_path, cut, change):
    until_cut(lambda: language(bases(), tmp_path), cut, 8)
    assert (tmp_path / STATE2).exists()
    assert same(language(bases(), tmp_path, change), language(bases(), None, change))


@pytest.mark.usefixtures("always")
def test_a_state_of_a_phase_2_of_other_length_is_not_taken_where_phase_1_is_the_same(
    bases, tmp_path, cut
):
    short, long = (
        {"phase1_steps": 2, "training": {"max_steps": max_steps}} for max_steps in (4, 6)
    )
    until_cut(lambda: language(bases(), tmp_path, short), cut, 5)
    assert (tmp_path / STATE2).exists()
    assert same(language(bases(), tmp_path, long), language(bases(), None, long))


@pytest.mark.usefixtures("always")
def test_a_fit_that_is_cut_off_on_the_second_half_goes_on_there(bases, tmp_path, cut):
    change = {"rank": "split-half", "training": {"max_steps": 8}}
    whole = language(bases(), None, change)
    until_cut(lambda: language(bases(), tmp_path, change), cut, 7)  # the third of the second half
    assert sorted(os.listdir(tmp_path)) == [
        "phase1-half1.safetensors",
        "phase1-half2.state.safetensors",
    ]
    before = (tmp_path / "phase1-half1.safetensors").stat().st_mtime_ns
    until_cut(
        lambda: language(bases(), tmp_path, change), cut, 3
    )  # the first of phase 1: two were left of the half
    assert (tmp_path / "phase1-half2.safetensors").exists()
    assert (tmp_path / "phase1-half1.safetensors").stat().st_mtime_ns == before
    vector = language(bases(), tmp_path, change)
    assert same(vector, whole)
    assert vector.provenance == whole.provenance


@pytest.mark.usefixtures("always")
def test_a_state_of_other_text_or_a_damaged_one_is_not_taken(bases, tmp_path, cut):
    whole, other = language(bases(), None), language(bases(), None, text=TEXT[:-1])
    until_cut(lambda: language(bases(), tmp_path), cut, 4)
    assert same(language(bases(), tmp_path, text=TEXT[:-1]), other)
    (tmp_path / "phase1.safetensors").unlink()
    until_cut(lambda: language(bases(), tmp_path), cut, 4)
    state = tmp_path / STATE1
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged, so it is not used"):
        assert same(language(bases(), tmp_path), whole)


def test_in_less_than_a_minute_nothing_is_kept_of_a_phase(bases, tmp_path, cut):
    until_cut(lambda: language(bases(), tmp_path), cut, 8)
    assert os.listdir(tmp_path) == ["phase1.safetensors"]


@pytest.mark.usefixtures("always")
def test_a_state_that_is_not_finite_is_not_kept(bases, tmp_path):
    with pytest.raises(Diverged):
        language(bases(), tmp_path, {"training": {"learning_rate": 1e30}})
    for file in tmp_path.iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


# --- a disk that is full or read-only ---


@pytest.mark.usefixtures("always")
def test_a_full_disk_stops_with_one_line_and_keeps_the_last_state(bases, tmp_path, cut):
    until_cut(lambda: language(bases(), tmp_path), cut, 3)
    before = (tmp_path / STATE1).read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
    try:
        with pytest.raises(DeftxError) as caught:
            language(bases(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(caught.value).startswith(f"cannot write {tmp_path / STATE1}: ")
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / STATE1).read_bytes() == before
    assert os.listdir(tmp_path) == [STATE1]
    assert same(language(bases(), tmp_path), language(bases(), None))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["save_file", "new_file"])
def test_what_the_disk_refuses_is_one_line_wherever_it_comes(
    bases, tmp_path, cut, monkeypatch, number, name
):
    """In phase 1, and when its result is written."""
    function, calls = getattr(tensors, name), []
    reasons = {errno.ENOSPC: "no space left on the disk"}
    reason = reasons.get(number, os.strerror(number))

    def refusing(path, *args, **options):
        calls.append(path)
        if len(calls) in (3, 5):
            raise OSError(number, os.strerror(number))
        return function(path, *args, **options)

    monkeypatch.setattr(tensors, name, refusing)
    for _ in range(2):
        with pytest.raises(DeftxError, match=f"cannot write {tmp_path}/phase1.*: {reason}; "):
            language(bases(), tmp_path)
    assert same(language(bases(), tmp_path), language(bases(), None))
    assert not list(tmp_path.glob("*.tmp"))
