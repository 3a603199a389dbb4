"""The sections on scores: how well variants do, and which of them is better."""

from collections.abc import Sequence

from deftx.experiments.recipe import Published
from deftx.experiments.report import figures, tables
from deftx.experiments.report.parts import Findings, Section, picture
from deftx.experiments.report.statistics import AVERAGE, SEEDS_FOR_A_CONCLUSION, SEEDS_FOR_P
from deftx.experiments.report.style import looks


def scores(found: Findings) -> Section | None:
    """The table of scores, with the paper's rows, and bars."""
    run, baseline = found.run, found.baseline
    scored = [name for name in run.variants if run.scores(name)]
    if not scored:
        return None
    columns = tables.score_columns(run)
    values = {name: tables.column_values(run, name, columns) for name in scored}
    several = any(len(v) > 1 for by in values.values() for v in by.values())
    labelled = " and ".join(run.recipe.labelled)
    about = (
        f"Each variant is one way to carry a task, learnt from labelled {labelled} data, over to languages "
        "without labelled data. The numbers say how well it does on test data of each language; 100 would be "
        "without a mistake."
    )
    notes = []
    if several and len(scored) > 1:
        notes.append(
            "Bold: the highest mean of a column, which need not be better (see the comparison below)."
        )
    if baseline in scored and len(scored) > 1:
        notes.append(
            f"{tables.BETTER}: higher than the baseline, {baseline}. {tables.SURELY_BETTER}: higher, and the 95% "
            f"interval of the difference, of {SEEDS_FOR_A_CONCLUSION} seeds or more, leaves out 0."
        )
    notes.append(_about_spread(several))
    article = "a" if len(run.recipe.labelled) > 1 else "the"
    for name in run.languages:
        if name in run.recipe.labelled:
            notes.append(
                f"{name} is {article} language of the labelled data; it is not in the average."
            )
    if run.recipe.paper:
        notes.append(_about_published(run.recipe.paper))
    shades = looks(run.variants, baseline)
    spread = " The lines show the standard deviation, the dots the single seeds." if several else ""
    drawing = picture(
        "scores",
        figures.bars(values, shades),
        f"Scores by language.{spread}",
        "Bars: "
        + "; ".join(f"{name} {tables.spread(by[AVERAGE])}" for name, by in values.items())
        + " on average.",
    )
    return Section(
        "scores",
        "Scores",
        about,
        notes,
        [tables.score_table(run, baseline, found.comparisons)],
        [drawing],
    )


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
        "A difference can come about by chance: by which seeds were run, and by which examples the test data "
        "happens to hold. The intervals are for other seeds and other examples of the same kind: in 95 of 100 such "
        "runs, an interval made like this holds the difference that very many seeds and examples would give."
    )
    notes = [
        "Student's t over seeds and examples, both paired: the variance between the seeds' differences, and what "
        "the examples add to all seeds alike (by the jackknife). “Detectable” is the true difference that as many "
        "seeds and examples would have told from chance in 80% of cases: smaller ones are likely to be missed. "
        "Nothing here says anything about other languages or another kind of test data.",
        f"p is given from {SEEDS_FOR_P} seeds on. p (Holm) is corrected for the number of comparisons: where it is "
        "0.05 or more, or missing, the difference holds only for that comparison by itself.",
        "Repeating a seed on another kind of processor is like another seed: rounding differs, and moved small "
        "models by up to four points.",
    ]
    fewest = min(len(pair.seeds) for pair in pairs)
    if fewest == 1:
        notes.append(
            "One seed: interval over examples only. Another seed may lie far outside of it, so nothing is concluded."
        )
    elif fewest < SEEDS_FOR_A_CONCLUSION:
        notes.append(
            f"{fewest} seeds: how much seeds differ is hardly known, intervals may hold the truth in 91% of cases "
            "only, and nothing is concluded."
        )
    run = found.run
    named = []
    for pair in pairs:
        if pair.average:
            named.append(f"{pair.first} minus {pair.second} {tables.signed(pair.average.value)}")
    names = "; ".join(named)
    drawing = picture(
        "differences",
        figures.differences(pairs, run.languages),
        "Differences by language: a dot is what was measured, filled where the 95% interval (the line) leaves out 0 "
        "and there are seeds enough.",
        f"Differences with intervals. On average: {names or 'not all languages are there'}.",
    )
    shown = [tables.comparison_table(pairs), tables.language_comparisons(run, pairs)]
    return Section(
        "comparison", "What is better, and how sure that is", about, notes, shown, [drawing]
    )
