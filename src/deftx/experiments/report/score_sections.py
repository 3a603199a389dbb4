"""The sections on scores: how well variants do, and which of them is better."""

from collections.abc import Sequence

from deftx.experiments.recipe import Published
from deftx.experiments.report import figures, tables
from deftx.experiments.report.comparisons import AVERAGE, Comparison
from deftx.experiments.report.parts import ReportData, Section, picture
from deftx.experiments.report.statistics import SEEDS_FOR_A_CONCLUSION, SEEDS_FOR_P
from deftx.experiments.report.style import variant_styles
from deftx.experiments.run_folder import RecipeData


def scores(data: ReportData) -> Section | None:
    """The table of scores, with the paper's rows, and bars."""
    run = data.run
    columns = tables.score_columns(run)
    values = {}
    has_several_seeds = False
    for variant in run.variants:
        if not run.scores(variant):
            continue
        by_column = tables.column_values(run, variant, columns)
        values[variant] = by_column
        most = max(len(of_column) for of_column in by_column.values())
        has_several_seeds = has_several_seeds or most > 1
    if not values:
        return None

    labelled = " and ".join(run.recipe.labelled)
    about = (
        f"Each variant is one way to carry a task, learnt from labelled {labelled} data, over to "
        "languages without labelled data. The numbers say how well it does on test data of each "
        "language; 100 would be without a mistake."
    )
    notes = _notes_on_scores(data, scored=list(values), has_several_seeds=has_several_seeds)

    # bars, and their averages in words
    caption = "Scores by language."
    if has_several_seeds:
        caption += " The lines show the standard deviation, the dots the single seeds."
    averages = []
    for variant, by_column in values.items():
        averages.append(f"{variant} {tables.spread(by_column[AVERAGE])}")
    alt = f"Bars: {'; '.join(averages)} on average."
    styles = variant_styles(run.variants, data.baseline)
    drawing = picture("scores", figures.bars(values, styles), caption, alt)
    table = tables.score_table(run, data.baseline, data.comparisons)
    return Section("scores", "Scores", about, notes, [table], [drawing])


def _notes_on_scores(
    data: ReportData, scored: Sequence[str], *, has_several_seeds: bool
) -> list[str]:
    """How the table of scores is to be read."""
    recipe = data.run.recipe
    notes = []
    if has_several_seeds and len(scored) > 1:
        notes.append(
            "Bold: the highest mean of a column, which need not be better (see the comparison "
            "below)."
        )
    if data.baseline in scored and len(scored) > 1:
        notes.append(
            f"{tables.BETTER}: higher than the baseline, {data.baseline}. {tables.SURELY_BETTER}: "
            f"higher, and the 95% interval of the difference, of {SEEDS_FOR_A_CONCLUSION} seeds "
            "or more, leaves out 0."
        )
    if has_several_seeds:
        notes.append(
            "± is the standard deviation over seeds: other random starts and orders of the same "
            "data."
        )
    else:
        notes.append(
            "There is one seed, so nothing is known of how much another random start would change."
        )
    article = "a" if len(recipe.labelled) > 1 else "the"
    for name in data.run.languages:
        if name in recipe.labelled:
            what = f"{name} is {article} language of the labelled data"
            notes.append(f"{what}; it is not in the average.")
    if recipe.paper:
        notes.append(_about_published(recipe.paper))
    return notes


def _about_published(published: Sequence[Published]) -> str:
    """Where the rows of others are from."""
    sources = []
    for one_table in published:
        address = f" ({one_table.url})" if one_table.url else ""
        sources.append(f"{one_table.table}{address}")
    return (
        f"Rows that begin with “published” are others' numbers: {'; '.join(sources)}. Their base "
        "model, texts and number of steps may be others than those of this run: compare the "
        "pattern, not the digits."
    )


def comparison(data: ReportData) -> Section | None:
    """Differences between variants, and how far chance reaches."""
    comparisons = data.comparisons
    if not comparisons:
        return None
    about = (
        "A difference can come about by chance: by which seeds were run, and by which examples "
        "the test data happens to hold. The intervals are for other seeds and other examples of "
        "the same kind: in 95 of 100 such runs, an interval made like this holds the difference "
        "that very many seeds and examples would give."
    )
    averages = []
    for pair in comparisons:
        if pair.average is not None:
            points = tables.signed(pair.average.value)
            averages.append(f"{pair.first} minus {pair.second} {points}")
    in_words = "; ".join(averages) or "not all languages are there"
    caption = (
        "Differences by language: a dot is what was measured, filled where the 95% interval (the "
        "line) leaves out 0 and there are seeds enough."
    )
    drawing = picture(
        "differences",
        figures.differences(comparisons, data.run.languages),
        caption,
        f"Differences with intervals. On average: {in_words}.",
    )
    shown = [
        tables.comparison_table(comparisons),
        tables.language_comparisons(data.run, comparisons),
    ]
    title = "What is better, and how sure that is"
    notes = _notes_on_comparisons(comparisons)
    notes += _note_on_shared_languages(data.run.recipe)
    return Section("comparison", title, about, notes, shown, [drawing])


def _notes_on_comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    """How the intervals come about, and what they don't tell."""
    notes = [
        "Student's t over seeds and examples, both paired: the variance between the seeds' "
        "differences, and what the examples add to all seeds alike (by the jackknife). "
        "“Detectable” is the true difference that as many seeds and examples would have told from "
        "chance in 80% of cases: smaller ones are likely to be missed. Nothing here says anything "
        "about other languages or another kind of test data.",
        f"p is given from {SEEDS_FOR_P} seeds on. p (Holm) is corrected for the number of "
        "comparisons: where it is 0.05 or more, or missing, the difference holds only for that "
        "comparison by itself.",
        "Repeating a seed on another kind of processor is like another seed: rounding differs, "
        "and moved small models by up to four points.",
    ]
    fewest = min(len(pair.seeds) for pair in comparisons)
    if fewest == 1:
        notes.append(
            "One seed: interval over examples only. Another seed may lie far outside of it, so "
            "nothing is concluded."
        )
    elif fewest < SEEDS_FOR_A_CONCLUSION:
        notes.append(
            f"{fewest} seeds: how much seeds differ is hardly known, intervals may hold the truth "
            "in 91% of cases only, and nothing is concluded."
        )
    return notes


def _note_on_shared_languages(recipe: RecipeData) -> list[str]:
    """What the intervals miss where several seeds share a language vector."""
    n_language_seeds = len(recipe.language_seeds)
    if n_language_seeds == 0 or n_language_seeds >= len(recipe.seeds):
        return []
    if n_language_seeds == 1:
        return [
            "All seeds share one vector of each language. So the intervals are for other seeds of "
            "the task with these language vectors: others may lie outside of them."
        ]
    return [
        f"{len(recipe.seeds)} seeds share {n_language_seeds} vectors of each language. The "
        "intervals take all seeds as independent, so they are too narrow where language vectors "
        "differ much from seed to seed."
    ]
