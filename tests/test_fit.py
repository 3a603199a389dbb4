"""The method end to end: phases, what they share, where vectors are measured from, and that they
learn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from fit_examples import (
    LANGUAGE,
    QUICK,
    TASK,
    TEXT,
    TRAIN,
    VALID,
    labelled,
    language_model,
    same,
    size,
)
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import deftx.training.phases as phases_module
from deftx.config import (
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskTrainingConfig,
    TaskVectorConfig,
    changed,
)
from deftx.core.apply import apply
from deftx.core.denoise import denoise
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.select import select
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.errors import DeftxError, Diverged
from deftx.fit import METHODS, fit, fit_language, fit_task, transfer
from deftx.models.compose import compose
from deftx.models.heads import load_task_model
from deftx.models.limits import hidden_width
from deftx.models.loading import load_language_model
from deftx.models.scales import tune_scales
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.masked_lm import masked_lm
from deftx.storage.provenance_json import provenance_from_json, provenance_to_json
from deftx.storage.tensors import load_tensors
from deftx.tasks.base import evaluate, supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.normalization import build_normalizer
from deftx.training.phases import phase1_file
from deftx.training.preparation import prepare_language


@pytest.fixture
def phases(monkeypatch):
    """The phases that are trained, in order, with the head's parameters as they were at the start
    of each."""
    seen, train = [], phases_module.train

    def watched(model, objective, training, moving, **options):
        seen.append(
            (int(options["title"][-1]), [parameter.detach().clone() for parameter in moving.head])
        )
        return train(model, objective, training, moving, **options)

    monkeypatch.setattr(phases_module, "train", watched)
    return seen


def numbers(phases):
    made = [number for number, _ in phases]
    phases.clear()
    return made


# --- what a vector holds ---


@pytest.mark.parametrize("k", [1, 37, "5%", "100%"])
def test_a_language_vector_has_exactly_k_entries(bases, k):
    vector = fit_language(bases(), TEXT, changed(LANGUAGE, {"k": k}))
    total = size(bases())
    expected = {"5%": round(0.05 * total), "100%": total}.get(k, k)
    assert vector.k == vector.provenance.k == expected
    assert (
        sum(entries.values.count_nonzero() for entries in vector.tensors.values()) > 0.5 * expected
    )
    assert vector.head is None


def test_the_selection_is_made_from_the_denoised_change_of_phase_1(bases, tmp_path):
    vector = fit_language(bases(), TEXT, LANGUAGE, checkpoint_dir=tmp_path)
    delta, _ = load_tensors(tmp_path / "phase1.safetensors")
    delta = {
        name: delta[name] for name in parameter_groups(AutoModel.from_pretrained(bases())).trainable
    }
    denoised = denoise(delta, 3, 0.05)
    assert vector.provenance.ranks == denoised.ranks
    assert set(denoised.ranks.values()) == {3}
    for name, places in select(denoised, "5%").items():
        assert torch.equal(vector.tensors[name].indices, places.indices)
    plain = select(delta, "5%")
    assert any(not torch.equal(vector.tensors[name].indices, plain[name].indices) for name in plain)


def test_what_is_kept_can_be_counted_over_rows_in_use_and_a_vector_says_so(bases, tmp_path):
    """With so little text most rows of the embeddings do not move."""
    text, base = tiny.sentences(4), AutoModel.from_pretrained(bases())
    vectors = {}
    for way in ("matrix", "rows-in-use"):
        settings = changed(
            LANGUAGE, {"rank": 1, "keep": 0.3, "keep_of": way, "training": {"batch_size": 1}}
        )
        vectors[way] = fit_language(bases(), text, settings, checkpoint_dir=tmp_path)
        delta, _ = load_tensors(tmp_path / "phase1.safetensors")
        expected = select(
            denoise({name: delta[name] for name in parameter_groups(base).trainable}, 1, 0.3, way),
            "5%",
        )
        assert all(
            torch.equal(vectors[way].tensors[name].indices, places.indices)
            for name, places in expected.items()
        )
        assert vectors[way].provenance.keep_of == way
    assert not same(vectors["matrix"], vectors["rows-in-use"])


@pytest.mark.parametrize("split", ["matrix", "layer"])
def test_k_can_be_split_between_matrices_or_layers(bases, split):
    vector, whole = (
        fit_language(bases(), TEXT, changed(LANGUAGE, {"split": way})) for way in (split, "global")
    )
    assert vector.k == whole.k
    shares, free = (
        v.density() if split == "matrix" else v.density_by_layer() for v in (vector, whole)
    )
    assert max(shares.values()) < 0.07  # one of 16, where 5% is less than one
    assert shares != free
    assert vector.provenance.split == split


def test_phase_1_is_the_same_whatever_is_averaged_in_phase_2(bases, tmp_path, phases):
    best = fit_language(bases(), TEXT, LANGUAGE, checkpoint_dir=tmp_path)
    assert numbers(phases) == [1, 2]
    mean = fit_language(
        bases(), TEXT, changed(LANGUAGE, {"training": {"average": 2}}), checkpoint_dir=tmp_path
    )
    assert numbers(phases) == [2]
    assert not same(best, mean)
    assert all(
        torch.equal(entries.indices, mean.tensors[name].indices)
        for name, entries in best.tensors.items()
    )


def test_deftx_at_full_rank_is_lt_sft(bases):
    full = fit_language(bases(), TEXT, changed(LANGUAGE, {"rank": 10_000}))
    plain = fit_language(bases(), TEXT, changed(LANGUAGE, {"method": "lt-sft"}))
    low = fit_language(bases(), TEXT, LANGUAGE)
    assert same(full, plain)
    assert not same(full, low)
    assert plain.provenance.ranks == {}


def test_what_is_noted_about_a_vector_is_plain_data(bases):
    language = fit_language(bases(), TEXT, LANGUAGE)
    task = fit_task(bases(), TRAIN, VALID, TASK, source=language)
    for vector, kind in ((language, "language"), (task, "task")):
        record = provenance_to_json(vector.provenance)
        plain = json.loads(json.dumps(record, allow_nan=False))
        assert plain == record
        provenance = provenance_from_json(plain)
        assert provenance == vector.provenance
        assert (provenance.kind, provenance.base) == (kind, bases())
        assert (provenance.method, provenance.rank) == ("deftx", 3)
        assert len(provenance.base_fingerprint) == 64
        for log in provenance.log.values():
            assert [
                row["step"] for row in log.history if "eval_loss" in row or "eval_macro_f1" in row
            ] == [2, 4]
            assert log.best_step in (2, 4)
    assert language.provenance.data.lines == 40
    assert task.provenance.source == language.provenance
    assert task.provenance.labels == ("early", "late")
    assert (task.provenance.data.train, task.provenance.data.valid) == (30, 12)
    assert task.head.labels == ("early", "late")


# --- what moves, and from where ---


def test_layer_norms_and_a_frozen_head_do_not_move_in_language_training(bases):
    model, objective = language_model(bases())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vector = fit(model, objective, changed(LANGUAGE, {"k": "100%"}))
    moved = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    body = {f"roberta.{name}" for name in parameter_groups(model).trainable}
    assert moved <= body
    assert len(moved) > 0.8 * len(body)
    assert vector.tensors.keys() == parameter_groups(model).trainable.keys()
    # nor does their gradient count when the gradient is clipped
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == body


def test_the_model_is_left_at_theta_2(bases):
    model, objective = language_model(bases())
    theta0 = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }
    vector = fit(model, objective, LANGUAGE)
    for name, weight in parameter_groups(model).backbone.items():
        phi = (
            vector.tensors[name].to_dense() if name in vector.tensors else torch.zeros(weight.shape)
        )
        assert torch.equal(weight.detach() - theta0[name], phi)
    assert not any(name == "sparse_values" for name, _ in model.named_parameters())


@pytest.mark.parametrize("shape", ["xlmr", "distilbert", "modernbert", "qwen"])
def test_the_config_is_left_as_it_was(bases, shape):
    """Since it is in the names of what is learnt, the next training on the same model would have
    another."""
    start = prepare_language(bases(shape), TEXT, LANGUAGE)
    before = start.model.config.to_json_string()
    fit(start.model, start.objective, LANGUAGE)
    assert start.model.config.to_json_string() == before


def classifier(base, source=None):
    model = load_task_model(base, ("early", "late"), TASK.seed)
    if source:
        apply(model, source)
    return model, supervised(
        CLASSIFICATION, TRAIN, VALID, ("early", "late"), load_tokenizer(base), 16, "macro_f1"
    )


def test_a_task_vector_is_measured_from_the_base_plus_its_source(bases):
    source = fit_language(bases(), TEXT, LANGUAGE)
    phi = fit_task(bases(), TRAIN, VALID, TASK, source=source)
    model, objective = classifier(bases(), source)
    start = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }
    by_hand = fit(model, objective, TASK)
    assert same(SparseVector(phi.tensors), by_hand)
    theta0 = parameter_groups(AutoModel.from_pretrained(bases())).backbone
    for name, theta2 in parameter_groups(model).backbone.items():
        zero = torch.zeros(theta2.shape)
        from_source = source.tensors[name].to_dense() if name in source.tensors else zero
        from_task = phi.tensors[name].to_dense() if name in phi.tensors else zero
        torch.testing.assert_close(theta2.detach(), theta0[name].detach() + from_source + from_task)
        untouched = from_task == 0
        assert torch.equal(theta2[untouched], start[name][untouched])
    assert all(
        torch.equal(weight, phi.head.tensors[name])
        for name, weight in parameter_groups(model).head.items()
    )
    without = fit_task(bases(), TRAIN, VALID, TASK)
    assert not same(phi, without)
    assert without.provenance.source is None


def test_the_composed_model_scores_as_it_did_at_its_best_step(bases):
    source = fit_language(bases(), TEXT, LANGUAGE)
    phi = fit_task(bases(), TRAIN, VALID, TASK, source=source)
    scores = evaluate(
        CLASSIFICATION, compose(bases(), phi, source), load_tokenizer(bases()), VALID, 16
    )
    assert scores["macro_f1"] == pytest.approx(phi.provenance.log["phase2"].best_score)


def test_the_head_starts_from_the_same_random_weights_in_both_phases(bases, phases):
    fit_task(bases(), TRAIN, VALID, TASK)
    (first, one), (second, two) = phases
    assert (first, second) == (1, 2)
    expected = list(
        parameter_groups(load_task_model(bases(), ("early", "late"), TASK.seed)).head.values()
    )
    assert len(one) == len(two) == len(expected)
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, expected, strict=True)
    )


def test_the_head_starts_from_there_also_where_phase_1_is_read(bases, phases, tmp_path):
    for _ in range(2):
        fit_task(bases(), TRAIN, VALID, TASK, checkpoint_dir=tmp_path)
    assert [number for number, _ in phases] == [1, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(phases[0][1], phases[2][1], strict=True))


# --- the same again ---


def test_a_language_is_recorded_by_name_and_a_folder_may_be_a_text(bases, tmp_path):
    named = fit_language(bases(), TEXT, LANGUAGE, language="min", checkpoint_dir=str(tmp_path))
    assert named.languages == ("min",)
    assert (tmp_path / phase1_file()).is_file()
    unnamed = fit_language(bases(), TEXT, LANGUAGE, checkpoint_dir=tmp_path)
    assert unnamed.languages == ()
    assert unnamed.equal(named)


def test_the_same_settings_give_the_same_vector_bit_for_bit(bases):
    torch.manual_seed(1)
    one = fit_language(bases(), TEXT, LANGUAGE)
    torch.manual_seed(2)
    assert same(one, fit_language(bases(), TEXT, LANGUAGE))
    assert not same(one, fit_language(bases(), TEXT, changed(LANGUAGE, {"seed": 1})))
    task = fit_task(bases(), TRAIN, VALID, TASK, source=one)
    assert same(task, fit_task(bases(), TRAIN, VALID, TASK, source=one))
    assert not same(task, fit_task(bases(), TRAIN, VALID, changed(TASK, {"seed": 1}), source=one))


def test_phase_1_is_trained_once_for_all_methods_ranks_and_sizes(bases, phases, tmp_path):
    variants = [
        {},
        {"method": "lt-sft"},
        {"rank": 2},
        {"rank": "90%"},
        {"keep": 0.5},
        {"k": 10},
        {"training": {"report_to": ()}},
    ]
    for variant in variants:
        settings = changed(LANGUAGE, variant)
        shared = fit_language(bases(), TEXT, settings, checkpoint_dir=tmp_path / "a" / "b")
        assert numbers(phases) == ([2] if variant else [1, 2])
        alone = fit_language(bases(), TEXT, settings)
        assert numbers(phases) == [1, 2]
        assert same(shared, alone)
        assert shared.provenance.log == alone.provenance.log


def test_a_shorter_phase_1_is_that_of_a_fit_with_as_few_steps(bases, phases, tmp_path):
    """Phase 2 keeps its steps; phase 1 is shared with whatever trains it as long."""
    short = changed(LANGUAGE, {"training": {"max_steps": 2}})
    half = changed(LANGUAGE, {"phase1_steps": 2})
    of_short = fit_language(bases(), TEXT, short, checkpoint_dir=tmp_path)
    numbers(phases)
    vector = fit_language(bases(), TEXT, half, checkpoint_dir=tmp_path)
    assert numbers(phases) == [2]
    log = vector.provenance.log
    assert (log["phase1"].steps, log["phase2"].steps) == (2, LANGUAGE.training.max_steps)
    assert log["phase1"] == of_short.provenance.log["phase1"]
    assert vector.provenance.phase1_steps == 2
    for name, entries in vector.tensors.items():  # the same places, other values
        assert entries.indices.equal(of_short.tensors[name].indices)
    assert same(vector, fit_language(bases(), TEXT, half))
    assert not same(vector, of_short)


@pytest.mark.parametrize("steps", [4, 1000])
def test_a_phase_1_of_as_many_steps_as_phase_2_or_more_is_the_usual_one(bases, steps):
    settings = changed(LANGUAGE, {"phase1_steps": steps})
    assert settings.deciding_phase1() == LANGUAGE.deciding_phase1()
    assert same(fit_language(bases(), TEXT, settings), fit_language(bases(), TEXT, LANGUAGE))


@pytest.mark.parametrize("method", ["pafi", "largest-weights", "spiel-ag"])
def test_steps_of_a_phase_1_that_a_method_lacks_are_refused(bases, method):
    settings = changed(LANGUAGE, {"phase1_steps": 2, "method": method})
    with pytest.raises(DeftxError, match=f"phase1_steps = 2: method {method} has no phase 1"):
        fit_language(bases(), TEXT, settings)


def test_the_fewest_steps_do_not_lengthen_a_phase_1_that_is_to_be_short():
    settings = changed(LANGUAGE, {"training": {"max_steps": 9, "min_steps": 7}, "phase1_steps": 3})
    training = settings.of_phase1().training
    assert (training.max_steps, training.min_steps) == (3, 3)
    assert "phase1_steps" not in LANGUAGE.deciding()


def test_a_task_whose_phase_1_is_read_has_the_same_vector_and_head(bases, phases, tmp_path):
    source = fit_language(bases(), TEXT, LANGUAGE)
    numbers(phases)
    made = [
        fit_task(bases(), TRAIN, VALID, TASK, source=source, checkpoint_dir=tmp_path)
        for _ in range(2)
    ]
    assert numbers(phases) == [1, 2, 2]
    assert same(*made)
    fit_task(bases(), TRAIN, VALID, TASK, checkpoint_dir=tmp_path)
    assert numbers(phases) == [1, 2]  # from θ0 it is another phase 1


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"learning_rate": 2e-2}},
        {"training": {"max_steps": 3}},
        {"training": {"l1": 0.0}},
        {"training": {"mask": 0.2}},
        {"training": {"precision": "bf16"}},
        {"seed": 1},
    ],
)
def test_a_setting_that_phase_1_depends_on_trains_it_anew(bases, phases, tmp_path, change):
    fit_language(bases(), TEXT, LANGUAGE, checkpoint_dir=tmp_path)
    numbers(phases)
    settings = changed(LANGUAGE, change)
    again = fit_language(bases(), TEXT, settings, checkpoint_dir=tmp_path)
    assert numbers(phases) == [1, 2]
    assert same(again, fit_language(bases(), TEXT, settings))


def test_other_text_another_base_or_a_damaged_file_train_phase_1_anew(bases, phases, tmp_path):
    other = tiny.save_base(tmp_path / "other", seed=3)
    checkpoint_dir, file = tmp_path / "work", tmp_path / "work" / "phase1.safetensors"
    fit_language(bases(), TEXT, LANGUAGE, checkpoint_dir=checkpoint_dir)
    fit_language(bases(), TEXT[:-1], LANGUAGE, checkpoint_dir=checkpoint_dir)
    fit_language(other, TEXT[:-1], LANGUAGE, checkpoint_dir=checkpoint_dir)
    assert numbers(phases) == [1, 2] * 3
    for content in (file.read_bytes()[:-9], b"", b"no tensors"):
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="phase1.safetensors is damaged, so it is not used"):
            fit_language(other, TEXT[:-1], LANGUAGE, checkpoint_dir=checkpoint_dir)
        assert numbers(phases) == [1, 2]
    assert [path.name for path in checkpoint_dir.iterdir()] == [file.name]


# --- what is refused before any training ---


@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(phases_module, "train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 10**9}, "k = 1000000000 is 1,000,000,000 entries; give 0 to "),
        ({"k": "120%"}, "k = 120% is "),
        ({"k": "many"}, "k = 'many' is neither a count"),
        ({"k": "0%"}, "k = 0% leaves nothing to learn"),
        ({"rank": 0}, "rank 0 is out of range"),
        ({"rank": "101%"}, "rank 101% is out of range"),
        ({"rank": "best"}, "unknown rank 'best'"),
        ({"rank": "768/100"}, "rank 768/100 is out of range: give a part of the width"),
        (
            {"method": "pafi", "phase2": False},
            "method pafi has no phase 1, so that phase2 = false leaves nothing to learn",
        ),
        (
            {"method": "deft-x"},
            "unknown method 'deft-x' (did you mean 'deftx'?); known: deftx, largest-weights",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_training(bases, wrong, message):
    with pytest.raises(DeftxError) as caught:
        fit_language(bases(), TEXT, changed(LANGUAGE, wrong))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_training")
def test_wrong_task_data_are_refused_before_any_training(bases):
    other = SparseVector({}, None, Provenance(base="another", base_fingerprint="0" * 64))
    cases = [
        (
            "unknown metric of classification 'f1'",
            lambda: fit_task(bases(), TRAIN, VALID, changed(TASK, {"training": {"metric": "f1"}})),
        ),
        (
            "a classifier needs at least two",
            lambda: fit_task(bases(), Examples(["ba"], None, ["x"]), VALID, TASK),
        ),
        (
            "label 'x' is not among",
            lambda: fit_task(bases(), TRAIN, Examples(["ba"], None, ["x"]), TASK),
        ),
        ("the examples have no labels", lambda: fit_task(bases(), TRAIN, Examples(["ba"]), TASK)),
        ("there are no examples", lambda: fit_task(bases(), TRAIN, Examples([], None, []), TASK)),
        ("the vector was made on", lambda: fit_task(bases(), TRAIN, VALID, TASK, source=other)),
    ]
    for message, wrong in cases:
        with pytest.raises(DeftxError, match=message):
            wrong()


def test_a_task_vector_may_have_a_head_and_nothing_else(bases):
    vector = fit_task(bases(), TRAIN, VALID, changed(TASK, {"k": 0}))
    start = parameter_groups(load_task_model(bases(), ("early", "late"), TASK.seed)).head
    assert vector.k == 0
    assert all(not torch.equal(vector.head.tensors[name], weight) for name, weight in start.items())


# --- when it diverges ---


class Faulty:
    """An objective whose losses are not a number from the n-th on."""

    def __init__(self, objective, first):
        self.objective, self.first, self.losses = objective, first, 0

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def loss(self, model, batch):
        self.losses += 1
        return self.objective.loss(model, batch) * (
            float("nan") if self.losses >= self.first else 1.0
        )


@pytest.mark.parametrize(("first", "phase", "step"), [(4, 1, 4), (8, 2, 4)])
def test_the_last_good_state_is_kept_when_a_phase_diverges(bases, tmp_path, first, phase, step):
    model, objective = language_model(bases())
    theta0 = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).trainable.items()
    }
    with pytest.raises(Diverged) as caught:
        fit(model, Faulty(objective, first), LANGUAGE, checkpoint_dir=tmp_path, title="min")
    file = tmp_path / "last-good.safetensors"
    message = str(caught.value)
    assert message.startswith(
        f"min: phase {phase}: the loss became nan at step {step}; the state of step 2 is kept; "
    )
    assert message.endswith(f"the change of the weights up to there is in {file}")
    assert "\n" not in message
    delta, about = load_tensors(file)
    assert about == {"phase": phase}
    for name, weight in parameter_groups(model).trainable.items():
        assert torch.equal(delta[name], weight.detach() - theta0[name])
    moved = sum(int(difference.count_nonzero()) for difference in delta.values())
    assert 0 < moved <= (round(0.05 * size(bases())) if phase == 2 else size(bases()))
    assert moved > 0.5 * size(bases()) or phase == 2


def test_without_a_folder_or_a_good_state_there_is_only_the_message(bases, tmp_path):
    for checkpoint_dir, first in ((None, 4), (tmp_path, 1)):
        model, objective = language_model(bases())
        with pytest.raises(Diverged, match=r"lower the learning rate or check the data$"):
            fit(model, Faulty(objective, first), LANGUAGE, checkpoint_dir=checkpoint_dir)
    assert not list(tmp_path.iterdir())


def test_a_phase_1_that_was_done_survives_a_phase_2_that_diverges(bases, phases, tmp_path):
    model, objective = language_model(bases())
    with pytest.raises(Diverged):
        fit(model, Faulty(objective, 6), LANGUAGE, checkpoint_dir=tmp_path)
    numbers(phases)
    model, objective = language_model(bases())
    vector = fit(model, objective, LANGUAGE, checkpoint_dir=tmp_path)
    assert numbers(phases) == [2]
    assert same(vector, fit(*language_model(bases()), LANGUAGE))


# --- whole ---


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_every_shape_of_base_goes_all_the_way(bases, shape):
    base = bases(shape)
    source, target = (fit_language(base, tiny.sentences(40, seed), LANGUAGE) for seed in (0, 1))
    task = fit_task(base, TRAIN, VALID, TASK, source=source)
    k = round(0.05 * size(base))
    assert (source.k, target.k, task.k) == (k, k, k)
    for vector in (source, target, task):
        assert not any("norm" in name.lower() for name in vector.tensors)
        assert all(entries.values.isfinite().all() for entries in vector.tensors.values())
        assert any(entries.values.any() for entries in vector.tensors.values())
    scores = evaluate(CLASSIFICATION, compose(base, task, target), load_tokenizer(base), VALID, 16)
    assert 0 <= scores["accuracy"] <= 1


def test_pairs_of_texts_of_which_some_are_empty_make_a_task_vector(bases):
    pairs = Examples(
        ["", "ba be", "bi", ""] * 5,
        ["bo", "", "ba be bi", ""] * 5,
        ["no", "yes", "maybe", "no"] * 5,
    )
    vector = fit_task(bases(), pairs, pairs, changed(TASK, {"training": {"metric": "accuracy"}}))
    assert vector.head.labels == ("maybe", "no", "yes")
    scores = evaluate(CLASSIFICATION, compose(bases(), vector), load_tokenizer(bases()), pairs, 16)
    assert scores["accuracy"] == pytest.approx(vector.provenance.log["phase2"].best_score)


def test_a_half_precision_base_gives_the_vectors_of_its_full_precision_copy(bases, tmp_path):
    half = tiny.save_base(tmp_path / "half", dtype=torch.float16)
    full = Path(shutil.copytree(half, tmp_path / "full"))
    AutoModelForMaskedLM.from_pretrained(half, dtype=torch.float32).save_pretrained(full)
    one, other = (fit_language(base, TEXT, LANGUAGE) for base in (half, full))
    assert same(one, other)
    assert one.provenance.base_fingerprint == other.provenance.base_fingerprint
    assert {entries.values.dtype for entries in one.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("called", "reader"),
    [
        (lambda base: fit_language(base, "text.txt", LANGUAGE), "read_text"),
        (lambda base: fit_task(base, "text.txt", VALID, TASK), "read_examples"),
        (lambda base: fit_task(base, TRAIN, "text.txt", TASK), "read_examples"),
        (lambda base: transfer(base, TEXT, "text.txt", TRAIN, VALID), "read_text"),
        (lambda base: build_normalizer("text.txt", TEXT), "read_text"),
        (
            lambda base: tune_scales(base, SparseVector({}), SparseVector({}), "text.txt"),
            "read_examples",
        ),
    ],
)
def test_the_name_of_a_file_in_place_of_what_is_in_it_is_refused_before_any_training(
    bases, called, reader
):
    with pytest.raises(
        DeftxError, match=rf"'text\.txt' is one text, where a list is wanted: .* deftx\.{reader}$"
    ):
        called(bases())


WRONG_KINDS = {  # what is said -> what is called with something of another kind
    "the settings are a dict: give a deftx.LanguageVectorConfig": lambda base: fit_language(
        base, TEXT, {"k": "5%"}
    ),
    "the settings are a TaskVectorConfig: give a deftx.LanguageVectorConfig": lambda base: (
        fit_language(base, TEXT, TASK)
    ),
    "the settings are a dict: give a deftx.TaskVectorConfig": lambda base: fit_task(
        base, TRAIN, VALID, {"k": "5%"}
    ),
    "the settings are a LanguageVectorConfig: give a deftx.TaskVectorConfig": lambda base: fit_task(
        base, {"ind": TRAIN}, {"ind": VALID}, LANGUAGE
    ),
    "'vectors/ind' is the name of a vector": lambda base: fit_task(
        base, TRAIN, VALID, TASK, source="vectors/ind"
    ),
    "a list is given where examples are wanted": lambda base: fit_task(
        base, [{"text": "ba", "label": "x"}], VALID, TASK
    ),
    "a list is given where examples are wanted: give deftx.Examples": lambda base: fit_task(
        base, TRAIN, ["ba"], TASK
    ),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("says", WRONG_KINDS)
def test_arguments_of_another_kind_are_told_before_any_training(bases, says):
    with pytest.raises(DeftxError, match=f"^{says}"):
        WRONG_KINDS[says](bases())


def test_labels_that_are_no_text_are_refused_before_any_training(bases):
    numbered = replace(TRAIN, labels=[number % 2 for number in range(len(TRAIN))])
    with pytest.raises(DeftxError, match="label 0 is not text, as names of labels are: give '0'"):
        fit_task(bases(), numbered, numbered, TASK)


def test_transfer_is_the_three_vectors_composed(bases):
    texts = [tiny.sentences(40, seed) for seed in (0, 1)]
    model = transfer(bases(), *texts, TRAIN, VALID, LANGUAGE, TASK)
    source, target = (fit_language(bases(), text, LANGUAGE) for text in texts)
    expected = compose(bases(), fit_task(bases(), TRAIN, VALID, TASK, source=source), target)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(expected.named_parameters())[name])
    assert model.config.id2label == {0: "early", 1: "late"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A base that was taught a language in which every word is followed by its neighbour."""
    folder = tiny.save_base(tmp_path_factory.mktemp("taught") / "base")
    model = AutoModelForMaskedLM.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    objective = masked_lm(
        tiny.sentences(2000), load_tokenizer(folder), LanguageTrainingConfig(), 16, 0
    )
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    torch.manual_seed(0)
    for step in range(700):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 700)
        batch = objective.collate(list(objective.train[torch.randint(len(objective.train), (32,))]))
        optimiser.zero_grad()
        objective.loss(model.train(), batch).backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


def test_a_language_vector_learns_its_language(taught):
    """Every word is followed by its third neighbour; knowing only how frequent words are, the loss
    is ln 70 = 4.25."""
    training = {"learning_rate": 1e-2, "max_steps": 200, "min_steps": 0, "evaluate_every": 50}
    training |= {"batch_size": 32, "length": 16, "held_out": 0.1, "precision": "fp32"}
    settings = LanguageVectorConfig(k="30%", training=LanguageTrainingConfig(**training))
    vector = fit_language(taught, tiny.sentences(1000, seed=3, step=3), settings)
    phase1, phase2 = (vector.provenance.log[f"phase{number}"].best_score for number in (1, 2))
    assert phase1 < 3.0
    assert phase2 < 3.0

    model = load_language_model(taught)
    objective = masked_lm(
        tiny.sentences(300, seed=9, step=3), load_tokenizer(taught), settings.training, 16, 0
    )
    with torch.no_grad():
        before = objective.validate(model.eval(), 64)["loss"]
        apply(model, vector)
        after = objective.validate(model, 64)["loss"]
    assert after < 3.1
    assert after < before - 1.0


def test_a_task_vector_learns_its_task(taught):
    settings = TaskVectorConfig(
        k="30%",
        training=TaskTrainingConfig(
            **{**QUICK, "max_steps": 100, "evaluate_every": 25, "batch_size": 16}
        ),
    )
    vector = fit_task(taught, labelled(300, 1), labelled(60, 2), settings)
    scores = evaluate(
        CLASSIFICATION, compose(taught, vector), load_tokenizer(taught), labelled(200, 5), 16
    )
    assert scores["macro_f1"] > 0.9


@pytest.mark.parametrize("method", ["pafi", "largest-weights"])
def test_a_choice_by_weights_takes_one_training_and_exactly_the_extreme_weights(
    bases, phases, method
):
    settings = changed(LANGUAGE, {"method": method})
    vector = fit_language(bases(), TEXT, settings)
    model, _ = language_model(bases())
    trainable = parameter_groups(model).trainable
    flat = torch.cat([weight.detach().abs().view(-1) for weight in trainable.values()])
    k = round(0.05 * len(flat))
    expected = flat.argsort(stable=True, descending=method == "largest-weights")[:k].sort().values
    assert torch.equal(flat_positions(vector, trainable), expected)
    assert list(vector.provenance.log) == ["phase2"]
    assert numbers(phases) == [2]


def flat_positions(vector, trainable):
    """Where the entries of a vector are among all entries of the tensors, in order."""
    positions, start = [], 0
    for name, weight in trainable.items():
        positions.append(vector[name].indices + start)
        start += weight.numel()
    return torch.cat(positions)


def test_random_entries_are_others_for_each_difference_and_always_the_same_for_one():
    """With the seed alone a language's places and the task's would be the same k: the worst sum
    there is."""
    drawn = torch.Generator().manual_seed(0)
    language, task = (
        {"a": torch.randn(40, 50, generator=drawn), "b": torch.randn(60, generator=drawn)}
        for _ in "12"
    )

    def places(delta, seed=0):
        chosen = select(
            METHODS["random"](
                delta, "90%", LanguageVectorConfig(method="random", seed=seed, k=206)
            ).tensors,
            206,
        )
        return {(name, place) for name, some in chosen.items() for place in some.indices.tolist()}

    assert places(language) == places({name: tensor.clone() for name, tensor in language.items()})
    for other in (places(task), places(language, seed=1)):
        assert len(places(language) & other) < 60  # of 206; by chance about 21


def test_random_entries_are_drawn_among_those_that_phase_1_moved():
    moved = (
        torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < 0.2
    )  # as few rows of embeddings move
    delta = {"a": torch.where(moved, 1e-9, 0.0), "b": torch.zeros(60)}
    drawn = METHODS["random"](delta, "90%", LanguageVectorConfig(method="random", k=100)).tensors
    chosen = select(drawn, 100)
    assert len(chosen["a"].indices) == 100
    assert moved.view(-1)[chosen["a"].indices].all()
    assert set(chosen["a"].indices.tolist()) != set(
        moved.view(-1).nonzero().view(-1)[:100].tolist()
    )


def test_where_fewer_entries_moved_than_are_to_be_drawn_all_of_them_are_and_that_is_said():
    delta = {"a": torch.zeros(40, 50), "b": torch.ones(60)}
    with pytest.warns(
        UserWarning, match="phase 1 moved 60 entries, fewer than k = 100: random takes all of them"
    ):
        drawn = METHODS["random"](
            delta, "90%", LanguageVectorConfig(method="random", k=100)
        ).tensors
    chosen = select(drawn, 100)
    assert len(chosen["b"].indices) == 60
    assert len(chosen["a"].indices) == 40


@pytest.mark.parametrize("shape", ["xlmr", "distilbert", "llama", "t5", "bart"])
def test_a_rank_relative_to_the_width_is_the_same_for_every_matrix_and_is_recorded(bases, shape):
    assert hidden_width(AutoConfig.from_pretrained(bases(shape))) == 16
    relative = fit_language(bases(shape), TEXT, changed(LANGUAGE, {"rank": "3/16"}))
    number = fit_language(bases(shape), TEXT, changed(LANGUAGE, {"rank": 3}))
    assert relative.provenance.rank == "3/16"
    assert relative.provenance.rank_rule == 3
    assert relative.provenance.ranks == number.provenance.ranks
    assert max(relative.provenance.ranks.values()) == 3
    assert same(relative, number)
