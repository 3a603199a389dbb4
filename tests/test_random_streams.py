"""Each phase, epoch and step has random numbers of its own; and what dropout and replacements
do."""

import pytest
import tiny
import torch
from torch import nn

from deftx.config import (
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskTrainingConfig,
    TaskVectorConfig,
    changed,
)
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.fit import fit_language, fit_task
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.objectives.masked_lm import MaskedLM, masked_lm
from deftx.tasks.base import Supervised
from deftx.training import resume
from deftx.training.random_streams import derived_seed

QUICK = {"learning_rate": 1e-2, "max_steps": 4, "evaluate_every": 2, "batch_size": 4, "length": 16}
LANGUAGE = LanguageVectorConfig(
    k="5%", rank=3, training=LanguageTrainingConfig(**QUICK, min_steps=0, precision="fp32")
)
TASK = TaskVectorConfig(k="5%", rank=3, training=TaskTrainingConfig(**QUICK, precision="fp32"))
TEXT = tiny.sentences(40)
LABELLED = Examples(tiny.sentences(30, 1), None, ["early", "late"] * 15)
FITS = {
    "language": lambda base, checkpoint_dir=None: fit_language(
        base, TEXT, LANGUAGE, checkpoint_dir=checkpoint_dir
    ),
    "task": lambda base, checkpoint_dir=None: fit_task(
        base, LABELLED, LABELLED, TASK, checkpoint_dir=checkpoint_dir
    ),
}


class Cut(BaseException):
    """The end of the process."""


@pytest.fixture
def batches(monkeypatch):
    """Every batch that is trained on, and the state of torch's generator when it is."""
    seen = []
    for objective in (MaskedLM, Supervised):
        loss = objective.loss

        def watched(self, model, batch, loss=loss):
            seen.append((batch["input_ids"].tolist(), torch.get_rng_state().tolist()))
            return loss(self, model, batch)

        monkeypatch.setattr(objective, "loss", watched)
    return seen


@pytest.mark.parametrize("kind", FITS)
def test_phase_2_sees_other_batches_masks_and_dropout_than_phase_1(bases, batches, kind):
    FITS[kind](bases())
    phase1, phase2 = batches[:4], batches[4:]
    assert len(phase2) == 4
    inputs = [{str(ids) for ids, _ in phase} for phase in (phase1, phase2)]
    dropout = [{str(state) for _, state in phase} for phase in (phase1, phase2)]
    assert not inputs[0] & inputs[1]
    assert not dropout[0] & dropout[1]


@pytest.mark.parametrize("kind", FITS)
def test_they_are_the_same_from_run_to_run_and_after_a_resume(
    bases, batches, monkeypatch, tmp_path, kind
):
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "LARGEST_SHARE_OF_TIME", 1e9)
    torch.manual_seed(1)
    FITS[kind](bases())
    whole = list(batches)
    batches.clear()
    torch.manual_seed(2)
    FITS[kind](bases())
    assert batches == whole
    for after in (3, 6):  # in phase 1 and in phase 2
        checkpoint_dir = tmp_path / str(after)
        batches.clear()
        until(kind, bases(), checkpoint_dir, batches, after)
        before = list(batches)
        batches.clear()
        FITS[kind](bases(), checkpoint_dir)
        assert before + batches == whole


def until(kind, base, checkpoint_dir, batches, count):
    """Train until `count` batches were trained on, and be cut off at the next."""
    objective = {"language": MaskedLM, "task": Supervised}[kind]
    watched = objective.loss

    def cutting(self, model, batch):
        if len(batches) == count:
            raise Cut
        return watched(self, model, batch)

    objective.loss = cutting
    try:
        with pytest.raises(Cut):
            FITS[kind](base, checkpoint_dir)
    finally:
        objective.loss = watched


def test_seeds_of_other_purposes_are_others_and_fit_torchs_generators():
    seeds = {
        derived_seed(seed, purpose, step)
        for seed in range(3)
        for purpose in "ab"
        for step in range(50)
    }
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- dropout ---


def dropouts(model):
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("shape", ["xlmr", "bert", "distilbert", "deberta", "t5"])
def test_dropout_is_set_or_the_bases_own(bases, shape):
    own = load_language_model(bases(shape))
    changed_model = load_language_model(bases(shape), dropout=0.25)
    assert dropouts(changed_model) == {0.25}
    assert dropouts(own) == {0.1}
    assert own.config.vocab_size == changed_model.config.vocab_size


def test_dropout_that_is_no_module_is_set_too(bases):
    config = load_language_model(bases("bart"), dropout=0.25).config
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (
        0.25,
        0.25,
        0.25,
    )
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)


def test_a_task_has_its_dropout_and_its_labels(bases):
    model = load_task_model(bases(), ("no", "yes"), dropout=0.0)
    assert dropouts(model) == {0.0}
    assert model.config.attention_probs_dropout_prob == 0.0
    assert model.config.id2label == {0: "no", 1: "yes"}


def test_a_base_that_knows_no_dropout_is_named(bases):
    settings = changed(LANGUAGE, {"training": {"dropout": 0.1}})
    fit_language(bases("qwen"), TEXT, settings)  # Qwen has one, in its attention
    with pytest.raises(
        DeftxError, match=r"setting training\.dropout = 1\.0: input should be less than 1"
    ):
        changed(LANGUAGE, {"training": {"dropout": 1.0}})


def test_dropout_changes_the_vector_and_is_recorded(bases):
    one = fit_language(bases(), TEXT, changed(LANGUAGE, {"training": {"dropout": 0.0}}))
    other = fit_language(bases(), TEXT, changed(LANGUAGE, {"training": {"dropout": 0.5}}))
    assert (
        one.provenance.training.settings["dropout"],
        other.provenance.training.settings["dropout"],
    ) == (0.0, 0.5)
    assert one.provenance.log["phase1"].start_score == other.provenance.log["phase1"].start_score
    assert one.provenance.log["phase1"].best_score != other.provenance.log["phase1"].best_score


# --- replacements ---


def replaced_by(replacements):
    """What tokens become other than the mask and themselves, in many batches of a text of few
    words."""
    few = [" ".join(tiny.WORDS[i % 7] for i in range(n, n + 6)) for n in range(60)]
    training = LanguageTrainingConfig(replacements=replacements, mask=0.5)
    objective = masked_lm(few, tiny.tokenizer(), training, 16, 0)
    generator, ids = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        batch = objective.collate(list(objective.train), generator)
        changed_tokens = (batch["labels"] != -100) & (batch["input_ids"] != batch["labels"])
        ids |= set(batch["input_ids"][changed_tokens].tolist())
    used = set(objective.vocabulary_used.tolist())
    assert ids <= used
    return ids, used, objective.digest


def test_replacements_come_from_the_vocabulary_or_from_the_text():
    whole, used_whole, digest_whole = replaced_by("vocabulary")
    few, used_few, digest_few = replaced_by("corpus")
    assert whole == used_whole == set(range(75))
    assert few == {5, 6, 7, 8, 9, 10, 11, 4}  # its seven words, and the mask
    assert used_few == few | {0, 2}
    assert digest_whole != digest_few
