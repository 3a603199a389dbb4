"""The demo: laws of the artificial languages, the shipped base, and the whole of it."""

import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
import torch
from built import Installed
from matplotlib.axes import Axes
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from deftx.errors import DeftxError
from deftx.experiments.demo import run
from deftx.experiments.demo.languages import (
    CONTENT,
    FACES,
    FUNCTION,
    LABELS,
    MEANINGS,
    NOUNS,
    OTHERS,
    REPLACED,
    SOUND_CHANGES,
    SOURCE,
    TARGETS,
    inherited,
    labelled,
    note,
    plain_text,
    say,
    words,
)
from deftx.experiments.run_folder import read_run
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.vector_files import load

EVERY = (SOURCE, *OTHERS, *TARGETS)


@pytest.mark.parametrize("language", EVERY)
def test_a_language_has_a_word_of_its_own_for_every_meaning(language: str) -> None:
    assert list(words(language)) == MEANINGS
    assert len(set(words(language).values())) == len(MEANINGS)


def test_languages_share_words_only_where_they_mean_the_same() -> None:
    for first, second in combinations(EVERY, 2):
        same = {meaning for meaning in MEANINGS if words(first)[meaning] == words(second)[meaning]}
        assert set(FUNCTION) <= same
        assert (
            len(set(words(first).values()) & set(words(second).values()))
            == len(same)
            < 0.6 * len(MEANINGS)
        )


@pytest.mark.parametrize("language", EVERY)
def test_sound_changes_and_the_affix_are_regular_and_some_words_are_replaced(language: str) -> None:
    spoken, family = words(language), inherited()
    (affix,) = {spoken[meaning][-2:] for meaning in NOUNS}
    stems = {
        meaning: spoken[meaning].removesuffix(affix) if meaning in NOUNS else spoken[meaning]
        for meaning in CONTENT
    }
    changed = {
        (old, new)
        for meaning, stem in stems.items()
        if len(stem) == len(family[meaning])
        for old, new in zip(family[meaning], stem, strict=True)
        if SOUND_CHANGES.get(old) == new
    }
    assert len(changed) == 2
    sounds = str.maketrans(dict(changed))
    kept = [meaning for meaning in CONTENT if family[meaning].translate(sounds) == stems[meaning]]
    assert len(kept) == len(CONTENT) - round(REPLACED * len(CONTENT))
    assert not any(old in word for old, _ in changed for word in stems.values())


def clauses(meanings: list[str]) -> list[str]:
    return re.split(" (?:and|but) ", " ".join(meanings))


def test_no_clause_of_evaluation_text_is_in_any_text_that_is_learnt_from() -> None:
    parts = {part: labelled(part, 300, 0) for part in ("train", "valid", "test")}
    said = {
        part: {c for meanings, _ in rows for c in clauses(meanings)} for part, rows in parts.items()
    }
    notes = [note(random.Random(seed)) for seed in range(5000)]
    learnt = {
        c for meanings in notes for c in clauses([m for m in meanings if m not in FACES.values()])
    }
    assert not said["test"] & (said["train"] | said["valid"] | learnt)
    assert not said["valid"] & (said["train"] | learnt)
    assert said["train"] & learnt


def test_labelled_data_is_balanced_and_without_repetition() -> None:
    rows = labelled("test", 300, 0)
    assert set(Counter(label for _, label in rows).values()) == {100}
    assert len({" ".join(meanings) for meanings, _ in rows}) == 300


def test_the_same_seed_generates_the_same_and_another_seed_another() -> None:
    assert (
        plain_text(TARGETS[0], 20, 1)
        == plain_text(TARGETS[0], 20, 1)
        != plain_text(TARGETS[0], 20, 2)
    )
    assert labelled("test", 20, 1) == labelled("test", 20, 1) != labelled("test", 20, 2)


def test_plain_text_of_a_target_is_mostly_in_the_target() -> None:
    spoken = [word for line in plain_text(TARGETS[0], 500, 0) for word in line.split()]
    own = set(words(TARGETS[0]).values()) - set(words(SOURCE).values())
    foreign = set(words(SOURCE).values()) - set(words(TARGETS[0]).values())
    assert sum(word in own for word in spoken) > 2 * sum(word in foreign for word in spoken) > 0


def test_the_shipped_base_is_small_and_knows_every_word() -> None:
    assert sum(file.stat().st_size for file in run.BASE.iterdir()) < 1_000_000
    model = AutoModelForMaskedLM.from_pretrained(run.BASE, dtype=torch.float32)
    tokenizer = load_tokenizer(run.BASE)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    for language in EVERY:
        assert (
            tokenizer.unk_token_id not in tokenizer(" ".join(words(language).values()))["input_ids"]
        )


def test_another_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(DeftxError, match="exists"):
            run.demo(tmp_path, force=force)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_demo_that_was_stopped_is_resumed_and_one_that_is_done_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs = tmp_path / "demo", []

    def run_recipe(recipe: object, folder: Path, *rest: object) -> list[run.Score]:
        runs.append(sorted(path.name for path in folder.iterdir()) if folder.exists() else None)
        (folder / "vectors").mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(run, "run_recipe", run_recipe)
    monkeypatch.setattr(run, "LINES", 20)
    monkeypatch.setattr(
        run, "compose_one", lambda out, seed: (out / "models" / TARGETS[0]).mkdir(parents=True)
    )
    for name in ("plot", "table"):
        monkeypatch.setattr(run, name, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run.demo(out)
    with pytest.raises(DeftxError, match="exists"):
        run.demo(out, seed=1)
    run.demo(out, force=True)  # as it was typed at first
    assert runs == [None, ["vectors"]]
    with pytest.raises(DeftxError, match="exists"):
        run.demo(out)
    run.demo(out, force=True)
    assert runs[2:] == [None]


def test_the_plot_has_a_bar_of_the_mean_over_seeds_for_each_variant_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, expected = [], []
    for number, variant in enumerate(run.VARIANTS):
        for place, target in enumerate(TARGETS):
            level = 0.1 + 0.2 * number + 0.05 * place
            expected.append(100 * level)
            for seed, difference in enumerate((-0.02, 0.02)):
                f1 = {"macro_f1": level + difference}
                scores.append(run.Score(variant, seed, target, 4, f1))
    drawn: list[float] = []
    bar = Axes.bar

    def recorded(axes, places, heights, *arguments, **options):
        drawn.extend(heights)
        return bar(axes, places, heights, *arguments, **options)

    monkeypatch.setattr(Axes, "bar", recorded)
    run.plot(scores, tmp_path / "demo.png")
    assert drawn == pytest.approx(expected)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_language_vectors_help_and_the_demo_leaves_what_it_says(
    installed: Installed, tmp_path: Path
) -> None:
    """From the built wheel, in a folder outside the checkout."""
    finished = installed.run("deftx", "demo", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "deftx inspect demo/vectors/task" in finished.stdout
    out = tmp_path / "demo"
    assert (out / "demo.png").stat().st_size > 10_000

    rows = read_run(out / "run").rows
    score = {(row.variant, row.language): row.score("macro_f1") for row in rows}
    assert score.keys() == {(variant, target) for variant in run.VARIANTS for target in TARGETS}
    for variant in (run.LT_SFT, run.DEFT_X):
        assert mean(score[variant, target] - score[run.NONE, target] for target in TARGETS) > 0.03

    task = load(out / "vectors" / "task")
    best = task.provenance.log["phase2"].best_score  # macro-F1 on held-out text of the source
    assert best is not None
    assert best > 0.95
    folder = out / "models" / TARGETS[0]
    classify = pipeline(
        "text-classification", model=str(folder), tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    (answer,) = classify(say(["the", "bread", "is", "good"], TARGETS[0]))
    assert answer["label"] in LABELS
