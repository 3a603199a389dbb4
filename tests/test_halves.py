"""Ranks that a fit measures, by two trainings more, each on half of the data: what they see, share
and leave behind."""

import os

import pytest
import torch
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID, labelled, language_model, same, size
from transformers import AutoModel
from vector_examples import vector

import deftx.training.phases as phases_module
from deftx.config import LanguageTrainingConfig, LanguageVectorConfig, changed
from deftx.core.denoise import denoise
from deftx.core.parameters import parameter_groups
from deftx.core.ranks import RECOMMENDED, is_matrix, split_half_ranks
from deftx.core.select import select
from deftx.errors import DeftxError
from deftx.fit import fit, fit_language, fit_task
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.tensors import load_tensors
from deftx.tasks.base import supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.training.halves import halved
from deftx.training.random_streams import derived_seed

SPLIT_HALF = changed(LANGUAGE, {"rank": "split-half"})
ALL, HALF_1, HALF_2 = (f"phase1{half}.safetensors" for half in ("", "-half1", "-half2"))


@pytest.fixture
def trainings(monkeypatch):
    """What each training is called, its settings, its seed, and the head at its start."""
    seen, train = [], phases_module.train

    def watched(model, objective, training, moving, **options):
        start = [parameter.detach().clone() for parameter in moving.head]
        seen.append((options["title"], training, options["seed"], start))
        return train(model, objective, training, moving, **options)

    monkeypatch.setattr(phases_module, "train", watched)
    return seen


def titles(trainings):
    found = [title for title, *_ in trainings]
    trainings.clear()
    return found


# --- what a half is ---


def task_objective(base, count):
    return supervised(
        CLASSIFICATION,
        labelled(count, 1),
        VALID,
        ("early", "late"),
        load_tokenizer(base),
        16,
        "accuracy",
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_halves_are_disjoint_and_together_all_of_the_data(bases, seed):
    _, language = language_model(bases())
    for objective, settings in ((language, SPLIT_HALF), (task_objective(bases(), 31), TASK)):
        settings = changed(settings, {"seed": seed})
        first, second = (halved(objective, settings, half)[0] for half in (1, 2))
        everything = [str(each) for each in objective.train]
        assert sorted(str(each) for part in (first, second) for each in part.train) == sorted(
            everything
        )
        assert len(first.train) == len(everything) // 2
        assert len({objective.digest, first.digest, second.digest}) == 3
        assert first.metric == objective.metric
        assert torch.equal(first.vocabulary_used, objective.vocabulary_used)


def test_the_seed_decides_which_half_an_example_is_in(bases):
    _, objective = language_model(bases())
    one, again, other = (
        halved(objective, changed(SPLIT_HALF, {"seed": seed}), 1)[0] for seed in (0, 0, 1)
    )
    assert [each.tolist() for each in one.train] == [each.tolist() for each in again.train]
    assert [each.tolist() for each in one.train] != [each.tolist() for each in other.train]


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_steps": 9, "min_steps": 0, "epochs": 100}, 4),
        ({"max_steps": None, "min_steps": 0, "epochs": 6}, 12),  # 6 · ceil(16 / 4) of all
        ({"max_steps": 40, "min_steps": 30, "epochs": 1}, 15),
        ({"max_steps": 1, "min_steps": 0}, 1),
    ],
)
def test_a_half_takes_half_of_the_steps_evaluated_as_often(bases, training, steps):
    _, objective = language_model(bases())
    objective = halved(objective, changed(LANGUAGE, {"training": {"batch_size": 2}}), 1)[0]
    objective.train = [objective.train[0]] * 16
    settings = changed(SPLIT_HALF, {"seed": 5, "training": {**training, "evaluate_every": 7}})
    for half in (1, 2):
        found = halved(objective, settings, half)[1]
        assert (
            found.training.max_steps,
            found.training.min_steps,
            found.training.evaluate_every,
        ) == (steps, steps, 3)
        assert found.seed == 5 + half
        same_again = {
            "max_steps": training["max_steps"],
            "min_steps": training["min_steps"],
            "evaluate_every": 7,
        }
        assert changed(found, {"seed": 5, "training": same_again}) == settings


# --- in a fit ---


def test_the_ranks_are_those_that_the_two_halves_agree_on(bases, tmp_path, trainings):
    found = fit_language(bases(), TEXT, SPLIT_HALF, checkpoint_dir=tmp_path, title="x")
    assert [(title, training.max_steps, seed) for title, training, seed, _ in trainings] == [
        ("x, half 1: phase 1", 2, derived_seed(1, "phase", 1)),
        ("x, half 2: phase 1", 2, derived_seed(2, "phase", 1)),
        ("x: phase 1", 4, derived_seed(0, "phase", 1)),
        ("x: phase 2", 4, derived_seed(0, "phase", 2)),
    ]
    body = parameter_groups(AutoModel.from_pretrained(bases())).trainable
    first, second, whole = (
        {n: load_tensors(tmp_path / file)[0][n] for n in body} for file in (HALF_1, HALF_2, ALL)
    )
    ranks = split_half_ranks(first, second)
    assert found.provenance.ranks == ranks
    assert len(set(ranks.values())) > 1
    assert (found.provenance.rank, list(found.provenance.log)) == (
        "split-half",
        ["half1", "half2", "phase1", "phase2"],
    )
    for name, places in select(denoise(whole, ranks, 0.05), "5%").items():
        assert torch.equal(found.tensors[name].indices, places.indices)


def test_phase_1_is_the_one_that_other_ranks_have(bases, tmp_path, trainings):
    found = [fit_language(bases(), TEXT, changed(LANGUAGE, {"rank": 3}), checkpoint_dir=tmp_path)]
    trainings.clear()
    found += [fit_language(bases(), TEXT, SPLIT_HALF, checkpoint_dir=tmp_path)]
    assert titles(trainings) == [
        "language, half 1: phase 1",
        "language, half 2: phase 1",
        "language: phase 2",
    ]
    assert found[0].provenance.log["phase1"] == found[1].provenance.log["phase1"]
    assert same(found[1], fit_language(bases(), TEXT, SPLIT_HALF))
    trainings.clear()
    fit_language(
        bases(), TEXT, changed(SPLIT_HALF, {"keep": 0, "k": "4%"}), checkpoint_dir=tmp_path
    )
    assert titles(trainings) == ["language: phase 2"]
    fit_language(bases(), TEXT, changed(SPLIT_HALF, {"seed": 1}), checkpoint_dir=tmp_path)
    assert len(titles(trainings)) == 4


def test_a_task_starts_with_the_same_head_on_both_halves(bases, trainings):
    found = fit_task(
        bases(), TRAIN, VALID, changed(TASK, {"rank": "split-half"}), source=vector(bases(), 1)
    )
    start = list(
        parameter_groups(load_task_model(bases(), ("early", "late"), TASK.seed)).head.values()
    )
    assert len(trainings) == 4
    for *_, top in trainings:
        assert len(top) == len(start)
        assert all(torch.equal(one, other) for one, other in zip(top, start, strict=True))
    body = parameter_groups(AutoModel.from_pretrained(bases())).trainable
    assert found.provenance.ranks.keys() == {
        name for name, weight in body.items() if is_matrix(weight)
    }


class Planted:
    """Gradients that are noise of their own for every example, in one matrix above a signal of rank
    2."""

    metric, greater_is_better, digest = "loss", False, "planted"
    signal, silent = (f"encoder.layer.{layer}.intermediate.dense.weight" for layer in (0, 1))

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.linalg.qr(torch.randn(n, 2, generator=generator))[0] for n in (24, 16))
        shift = torch.stack([3 * left @ right.mT, torch.zeros(24, 16)])
        self.train = [shift + torch.randn(2, 24, 16, generator=generator) for _ in range(count)]
        self.vocabulary_used = torch.tensor([0])

    def collate(self, examples, generator=None):
        return {"gradients": torch.stack(examples)}

    def loss_denominator(self, batch):
        return len(batch["gradients"])

    def loss(self, model, batch):
        weights = torch.stack(
            [parameter_groups(model).trainable[name] for name in (self.signal, self.silent)]
        )
        return (weights * batch["gradients"].mean(0)).sum()

    def validate(self, model, batch_size):
        return {"loss": 0.0}


def test_a_planted_signal_is_found_by_a_fit_and_noise_is_told_from_it(bases, tmp_path):
    training = LanguageTrainingConfig(
        batch_size=1, epochs=1, min_steps=0, evaluate_every=1000, l1=0, precision="fp32"
    )
    ranks = {}
    for rank in ("split-half", "90%"):
        settings = LanguageVectorConfig(k="5%", rank=rank, phase2=False, training=training)
        found = fit(load_language_model(bases()), Planted(200), settings, checkpoint_dir=tmp_path)
        ranks[rank] = found.provenance.ranks
    assert (ranks["split-half"][Planted.signal], ranks["split-half"][Planted.silent]) == (2, 0)
    assert (
        ranks["90%"][Planted.signal] > 2
    )  # noise is kept with the signal, and where there is nothing else
    assert ranks["90%"][Planted.silent] > 5
    assert sum(ranks["split-half"].values()) == 2  # all other matrices stay as they are


def test_another_method_trains_on_no_halves(bases, trainings):
    found = fit_language(bases(), TEXT, changed(SPLIT_HALF, {"method": "lt-sft"}))
    assert titles(trainings) == ["language: phase 1", "language: phase 2"]
    assert same(found, fit_language(bases(), TEXT, changed(LANGUAGE, {"method": "lt-sft"})))


def test_a_task_of_several_languages_halves_the_batches_of_all(bases, trainings):
    sources = {"a": vector(bases(), 1), "b": vector(bases(), 2)}
    data = {"a": labelled(13, 5), "b": labelled(9, 6)}, {"a": VALID, "b": VALID}
    settings = changed(TASK, {"rank": "split-half"})
    found = fit_task(bases(), *data, settings, source=sources)
    assert len(trainings) == 4
    assert found.provenance.rank == "split-half"
    with pytest.raises(
        DeftxError, match=r"^rank split-half with temperature 2: give temperature 1, since"
    ):
        fit_task(bases(), *data, settings, source=sources, temperature=2)


# --- what stops it ---


def test_data_that_are_too_few_to_halve_are_refused_before_any_training(bases, tmp_path, trainings):
    few = changed(SPLIT_HALF, {"training": {"batch_size": 16}})
    with pytest.raises(
        DeftxError,
        match=r"^rank split-half: there are \d+ training examples or blocks, and two halves",
    ):
        fit_language(bases(), TEXT, few, checkpoint_dir=tmp_path)
    settings = changed(TASK, {"rank": "split-half"})
    with pytest.raises(
        DeftxError,
        match=r"there are 9 training .* of at least 2 batches of 4 take 10: give more data",
    ):
        fit_task(bases(), labelled(9, 1), VALID, settings)
    assert (trainings, os.listdir(tmp_path)) == ([], [])
    assert fit_task(bases(), labelled(10, 1), VALID, settings).k == round(0.05 * size(bases()))


# --- auto ---


def test_auto_is_the_recommended_rule_and_both_are_noted(bases):
    auto, rule = (
        fit_language(bases(), TEXT, changed(LANGUAGE, {"rank": rank}))
        for rank in ("auto", RECOMMENDED)
    )
    assert same(auto, rule)
    assert (auto.provenance.rank, auto.provenance.rank_rule, auto.provenance.ranks) == (
        "auto",
        RECOMMENDED,
        rule.provenance.ranks,
    )
    assert rule.provenance.rank_rule is None


def test_auto_may_stand_for_split_half(bases, monkeypatch, trainings):
    monkeypatch.setattr("deftx.core.ranks.RECOMMENDED", "split-half")
    auto = fit_language(bases(), TEXT, changed(LANGUAGE, {"rank": "auto"}))
    assert len(titles(trainings)) == 4
    assert auto.provenance.rank_rule == "split-half"
    assert same(auto, fit_language(bases(), TEXT, SPLIT_HALF))


def test_settings_that_decide_are_as_they_were_where_neither_is_asked_for():
    for settings in (LANGUAGE, TASK, SPLIT_HALF, changed(LANGUAGE, {"rank": "90%"})):
        # The last three came later, and are off here, as phase1_steps; reselection is of SpIEL's
        # methods alone.
        off = {"logs", "report_to", "noise", "dropout", "base_precision"}
        left_out = {"training": off, "reselection": True, "phase1_steps": True}
        assert settings.deciding() == settings.model_dump(mode="json", exclude=left_out)
    assert changed(LANGUAGE, {"rank": "auto"}).deciding().keys() - LANGUAGE.deciding().keys() == {
        "rank_rule"
    }
