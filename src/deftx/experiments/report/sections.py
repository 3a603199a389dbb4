"""What a report says, section by section, in words for people who never saw the paper. What a run lacks is left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from deftx.experiments.report import figures, tables
from deftx.experiments.report.read import RunData
from deftx.experiments.report.statistics import AVERAGE, RESAMPLES, Comparison
from deftx.experiments.report.style import drawn, looks
from deftx.experiments.report.tables import Table
from deftx.experiments.report.vectors import Seen, look, spectra
from deftx.storage.hub import is_model_id
from deftx.storage.privacy import without_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure as it goes to the page and to files: `name` is that of the files, `width` in CSS pixels."""

    name: str
    caption: str
    alt: str
    width: int
    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, what to bear in mind, and what there is to see."""

    key: str
    title: str
    about: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Findings:
    """All that the sections are made of."""

    run: RunData
    baseline: str | None
    comparisons: Sequence[Comparison]
    seen: Seen
    resamples: int = RESAMPLES


def sections(found: Findings) -> list[Section]:
    """Those that the run has something for, in their order."""
    return [section for build in SECTIONS for section in [build(found)] if section]


def headline(found: Findings) -> list[str]:
    """What comes out, in a sentence or two."""
    run, metric = found.run, {"macro_f1": "macro-F1", "accuracy": "accuracy"}[found.run.recipe.metric]
    averages = {name: tables.column_values(run, name, [AVERAGE])[AVERAGE] for name in run.variants}
    averages = {name: values for name, values in averages.items() if values}
    if not averages:
        return []
    best = max(averages, key=lambda name: mean(averages[name]))
    said = [f"Best on average over the target languages: {best}, with a {metric} of {tables.spread(averages[best])} %."]
    whole = [(one, one.average) for one in found.comparisons if one.average]
    for one, gap in whole:
        if best in (one.first, one.second) and found.baseline in (one.first, one.second):
            follows = f"{'the difference ' if gap.low <= 0 <= gap.high else ''}{tables.verdict(one, gap)}"
            measured = f"{tables.signed(gap.value)} points, 95% interval {tables.interval(gap)}"
            said.append(f"{one.first} minus {one.second}: {measured}, so {follows}.")
    return said


def base_name(base: str) -> str:
    """A base as a report may show it: a hub id, or the last part of a folder's path."""
    return base if is_model_id(base) and not Path(base).exists() else Path(base).name


def _scores(found: Findings) -> Section | None:
    run, baseline = found.run, found.baseline
    scored = [name for name in run.variants if run.scores(name)]
    if not scored:
        return None
    columns = [*run.targets, AVERAGE, *(name for name in run.languages if name not in run.targets)]
    values = {name: tables.column_values(run, name, columns) for name in scored}
    several = any(len(v) > 1 for by in values.values() for v in by.values())
    about = (
        f"Each variant is one way to carry a task, learnt from labelled {run.recipe.source} data, over to languages "
        "without labelled data. The numbers say how well it does on test data of each language; 100 would be "
        "without a mistake."
    )
    notes = ["Bold: the best of a column."] if len(scored) > 1 else []
    if baseline in scored and len(scored) > 1:
        notes.append(
            f"{tables.BETTER}: higher than the baseline, {baseline}. {tables.SURELY_BETTER}: higher, and the 95% "
            "interval of the difference leaves out 0 (see the comparison below)."
        )
    notes.append(_about_spread(run, several))
    if run.recipe.source in run.languages:
        notes.append(f"{run.recipe.source} is the language of the labelled data; it is not in the average.")
    if paper := run.recipe.paper:
        where = f" ({paper.url})" if paper.url else ""
        notes.append(
            f"Rows that begin with “paper” are published numbers, {paper.table} of the paper{where}, of another base "
            "model: compare the pattern, not the digits."
        )
    shades = looks(run.variants, baseline)
    spread = " The lines show the standard deviation, the dots the single seeds." if several else ""
    picture = _picture(
        "scores",
        figures.bars(values, shades),
        f"Scores by language.{spread}",
        "Bars: " + "; ".join(f"{name} {tables.spread(by[AVERAGE])}" for name, by in values.items()) + " on average.",
    )
    return Section("scores", "Scores", about, notes, [tables.score_table(run, baseline, found.comparisons)], [picture])


def _about_spread(run: RunData, several: bool) -> str:
    if several:
        return "± is the standard deviation over seeds: other random starts and orders of the same data."
    return "There is one seed, so nothing is known of how much another random start would change."


def _comparison(found: Findings) -> Section | None:
    pairs = found.comparisons
    if not pairs:
        return None
    about = (
        "A difference can come about by chance: by which seeds were run, and by which examples the test data happens "
        "to hold. Here both are drawn anew many times, the same for both variants, and what changes in the difference "
        "shows how far chance reaches."
    )
    notes = [
        f"Paired bootstrap over seeds and examples, {found.resamples:,} draws; the interval holds 95% of them, and p "
        "is twice the share of them in which the difference is gone or the other way round. p (Holm) allows for there "
        "being several comparisons. Nothing here says anything about other languages or other test data.",
    ]
    fewest = min(len(one.seeds) for one in pairs)
    if fewest == 1:
        notes.append("Where there is one seed, only the examples were drawn anew: intervals are too narrow then.")
    elif fewest < 5:
        notes.append(
            f"With {fewest} seeds, what the seeds add to an interval is estimated roughly, and rather too low."
        )
    run = found.run
    names = "; ".join(
        f"{one.first} minus {one.second} {tables.signed(one.average.value)}" for one in pairs if one.average
    )
    picture = _picture(
        "differences",
        figures.differences(pairs, run.languages),
        "Differences by language: a dot is what was measured, filled where the 95% interval (the line) leaves out 0.",
        f"Differences with intervals. On average: {names or 'not all languages are there'}.",
    )
    shown = [tables.comparison_table(pairs), tables.language_comparisons(run, pairs)]
    return Section("comparison", "What is better, and how sure that is", about, notes, shown, [picture])


def _overlaps(found: Findings) -> Section | None:
    seen, pictures = found.seen, []
    if seen.with_task:
        pictures.append(
            _picture(
                "overlap-task",
                figures.overlap_with_task(seen.with_task),
                "Places that a language's vector shares with the task's vector, in percent of the smaller one "
                "(the paper's Figure 2); mean over the seeds.",
                _in_words({f"{variant}, {name}": mean(v) for (variant, name), v in seen.with_task.items()}),
            )
        )
    shared = {variant: pairs for variant, pairs in seen.languages.items() if len(pairs) > 1}
    if shared:
        pictures.append(
            _picture(
                "overlap-languages",
                figures.overlap_of_languages(shared),
                "Places that the vectors of two languages share, in percent of the smaller one (the paper's Figure 3); "
                "first seed.",
                _in_words({f"{v}, {a} and {b}": s for v, by in shared.items() for (a, b), s in by.items() if a != b}),
            )
        )
    about = (
        "A vector changes only some of the model's weights. Where two vectors that are added change the same weights, "
        "they may get in each other's way; where they share few, each does its own work."
    )
    return Section("overlap", "What vectors share", about, pictures=pictures) if pictures else None


def _ranks(found: Findings) -> Section | None:
    pictures, singular = [], spectra(found.run)
    shades = looks(found.run.variants, found.baseline)
    if singular:
        pictures.append(
            _picture(
                "spectra",
                figures.spectra(singular),
                "How much of a difference of weights its first r singular values hold, by layer; the dotted line is "
                f"90%. For {' and '.join(singular)}.",
                "Curves of the share of squared singular values by rank, one for each layer.",
            )
        )
    if found.seen.ranks:
        pictures.append(
            _picture(
                "ranks",
                figures.ranks(found.seen.ranks, shades),
                "The rank that denoising kept, by layer and kind of matrix: mean over languages and seeds, the band "
                "from the least to the most; task vectors dashed.",
                "Ranks kept by layer, one panel for each kind of matrix.",
            )
        )
    about = (
        "DeFT-X takes the change of each weight matrix apart into directions, the strongest first, and keeps the first "
        "r, its rank. A curve that rises quickly means that few directions tell most of what was learnt."
    )
    return Section("ranks", "Spectra and ranks", about, pictures=pictures) if pictures else None


def _places(found: Findings) -> Section | None:
    if not any(layer is not None for by in found.seen.places.values() for layer, _ in by):
        return None
    outside = tables.outside_table(found.seen.places)
    picture = _picture(
        "places",
        figures.density(found.seen.places),
        "The share of the weights that the vectors change, by layer (down) and kind of tensor (across), over languages "
        "and seeds. Each row of panels has a scale of its own.",
        "Heat maps of the share of changed weights by layer and kind of tensor.",
    )
    about = (
        "A vector may change k weights, wherever they are: the ones that full fine-tuning changed most. Where they "
        "lie tells which parts of the model a language or a task needs."
    )
    return Section(
        "places", "Where the changed weights lie", about, tables=[outside] if outside else [], pictures=[picture]
    )


def _training(found: Findings) -> Section | None:
    curves, shades = found.seen.curves, looks(found.run.variants, found.baseline)
    held = any(one.held_out for by in curves.values() for some in by.values() for one in some)
    trained = any(one.training for by in curves.values() for some in by.values() for one in some)
    pictures = []
    if held:
        pictures.append(
            _picture(
                "held-out",
                figures.curves(curves, shades, held_out=True),
                "On held-out data: phase 1 dashed, phase 2 solid; the band is from the least to the most of the seeds.",
                "Held-out loss or score by training step for each language and the task.",
            )
        )
    if trained:
        pictures.append(
            _picture(
                "training-loss",
                figures.curves(curves, shades, held_out=False),
                "On the data that is learnt from: phase 1 dashed, phase 2 solid.",
                "Training loss by step for each language and the task.",
            )
        )
    about = (
        "Every vector is learnt twice: in phase 1 all weights move, to find out which matter; in phase 2 only these "
        "move, from the start again. A curve that still falls (a loss) or rises (a score) at its "
        "end would go on with more steps."
    )
    notes = [
        "Variants that differ only in what comes after phase 1 share it, and their dashed lines lie on each other."
    ]
    return Section("training", "How training went", about, notes, pictures=pictures) if pictures else None


def _trimmed(found: Findings) -> Section | None:
    if not found.run.trimmed:
        return None
    about = (
        "Text of the test data that is also in what is trained on would make scores look better than they are. It was "
        "searched for before the training, and left out."
    )
    table = tables.words_table("Left out of training.", "texts left out", found.run.trimmed)
    return Section("trimmed", "What was left out", about, tables=[table])


def _repeat(found: Findings) -> Section | None:
    run = found.run
    recipe = without_paths("", run.recipe.model_dump(exclude={"variants", "paper"}))
    shown = [tables.words_table("The recipe.", "value", tables.flattened(recipe), folded=True)]
    if run.recipe.variants:
        shown.insert(0, tables.settings_table(run))
    seconds: dict[str, float] = {}
    versions: dict[str, set[str]] = {}
    for step in run.steps:
        if about := run.finished.get(step.id):
            seconds[step.kind] = seconds.get(step.kind, 0) + about.seconds
            for package, version in about.versions.items():
                versions.setdefault(package, set()).add(version)
    if versions:
        listed = {package: ", ".join(sorted(these)) for package, these in sorted(versions.items())}
        shown.append(tables.words_table("Versions that the steps ran with.", "version", listed))
    if any(seconds.values()):
        times = {kind: tables.hours(total) for kind, total in seconds.items()}
        shown.append(tables.words_table("Time that the steps took, all together.", "time", times))
    mixed = [package for package, these in versions.items() if len(these) > 1]
    notes = [f"Steps ran with different versions of {', '.join(mixed)}."] if mixed else []
    text = "What the run was told, and what it ran with. The commands at the end of this page repeat it."
    return Section("settings", "Settings and versions", text, notes, shown)


SECTIONS: list[Callable[[Findings], Section | None]] = [
    _scores,
    _comparison,
    _overlaps,
    _ranks,
    _places,
    _training,
    _trimmed,
    _repeat,
]


def findings_of(run: RunData, baseline: str | None, comparisons: Sequence[Comparison], resamples: int) -> Findings:
    """What there is to say of a run, its vectors looked at."""
    return Findings(run, baseline, comparisons, look(run), resamples)


def _picture(name: str, figure: "Figure", caption: str, alt: str) -> Picture:
    return Picture(name, caption, alt, round(96 * figure.get_figwidth()), *drawn(figure, name))


def _in_words(shares: dict[str, float]) -> str:
    """Shares as text for those who cannot see the picture; no more than fits a breath."""
    parts = [f"{name} {share:.0%}" for name, share in shares.items()]
    return "; ".join(parts[:20]) + (f"; and {len(parts) - 20} more" if len(parts) > 20 else "") + "."
