"""The sections on scores: how well variants do, and which of them is better."""

from collections.abc import Sequence

from deftx.experiments.recipe import Published
from deftx.experiments.report import figures, tables
from deftx.experiments.report.parts import Findings, Section, picture
from deftx.experiments.report.statistics import AVERAGE
from deftx.experiments.report.style import looks


def scores(found: Findings) -> Section | None:
    """The table of scores, with the paper's rows, and bars."""
    run, baseline = found.run, found.baseline
    scored = [name for name in run.variants if run.scores(name)]
    if not scored:
        return None
    columns = [*run.targets, AVERAGE, *(name for name in run.languages if name not in run.targets)]
    values = {name: tables.column_values(run, name, columns) for name in scored}
    several = any(len(v) > 1 for by in values.values() for v in by.values())
    labelled = " and ".join(run.recipe.labelled)
    about = (
        f"Each variant is one way to carry a task, learnt from labelled {labelled} data, over to languages "
        "without labelled data. The numbers say how well it does on test data of each language; 100 would be "
        "without a mistake."
    )
    notes = ["Bold: the best of a column."] if len(scored) > 1 else []
    if baseline in scored and len(scored) > 1:
        notes.append(
            f"{tables.BETTER}: higher than the baseline, {baseline}. {tables.SURELY_BETTER}: higher, and the 95% "
            "interval of the difference leaves out 0 (see the comparison below)."
        )
    notes.append(_about_spread(several))
    article = "a" if len(run.recipe.labelled) > 1 else "the"
    for name in run.languages:
        if name in run.recipe.labelled:
            notes.append(f"{name} is {article} language of the labelled data; it is not in the average.")
    if run.recipe.paper:
        notes.append(_about_published(run.recipe.paper))
    shades = looks(run.variants, baseline)
    spread = " The lines show the standard deviation, the dots the single seeds." if several else ""
    drawing = picture(
        "scores",
        figures.bars(values, shades),
        f"Scores by language.{spread}",
        "Bars: " + "; ".join(f"{name} {tables.spread(by[AVERAGE])}" for name, by in values.items()) + " on average.",
    )
    return Section("scores", "Scores", about, notes, [tables.score_table(run, baseline, found.comparisons)], [drawing])


def _about_published(published: Sequence[Published]) -> str:
    tables_and_places = [f"{one.table} ({one.url})" if one.url else one.table for one in published]
    return (
        f"Rows that begin with “published” are others' numbers: {'; '.join(tables_and_places)}. Their base model, "
        "texts and number of steps may be others than those of this run: compare the pattern, not the digits."
    )


def _about_spread(several: bool) -> str:
    if several:
        return "± is the standard deviation over seeds: other random starts and orders of the same data."
    return "There is one seed, so nothing is known of how much another random start would change."


def comparison(found: Findings) -> Section | None:
    """Differences between variants, and how far chance reaches."""
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
        "is twice the share of them in which the difference is zero or reversed. p (Holm) is corrected for the number "
        "of comparisons: where it is 0.05 or more, the difference holds only for that comparison by itself. Nothing "
        "here says anything about other languages or other test data.",
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
    drawing = picture(
        "differences",
        figures.differences(pairs, run.languages),
        "Differences by language: a dot is what was measured, filled where the 95% interval (the line) leaves out 0.",
        f"Differences with intervals. On average: {names or 'not all languages are there'}.",
    )
    shown = [tables.comparison_table(pairs), tables.language_comparisons(run, pairs)]
    return Section("comparison", "What is better, and how sure that is", about, notes, shown, [drawing])
