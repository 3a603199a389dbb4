"""The sections on vectors: their overlaps, the ranks that denoising kept, where their entries lie,
and how their training went."""

from collections.abc import Mapping
from statistics import mean

from deftx.experiments.report import figures, tables
from deftx.experiments.report.parts import ReportData, Section, picture
from deftx.experiments.report.style import variant_styles
from deftx.experiments.report.vectors import spectra

SHARES_IN_WORDS = 20  # no more are read out


def overlaps(data: ReportData) -> Section | None:
    """How many indices vectors have in common (paper, Figures 2 and 3)."""
    pictures = []
    with_task = data.vectors.overlap_with_task
    if with_task:
        means = {}
        for (variant, language), shares in with_task.items():
            means[f"{variant}, {language}"] = mean(shares)
        caption = (
            "Places that a language's vector shares with the task's vector, in percent of the "
            "smaller one (the paper's Figure 2); mean over the seeds."
        )
        figure = figures.overlap_with_task(with_task)
        pictures.append(picture("overlap-task", figure, caption, _in_words(means)))

    # a single language is paired with itself alone
    of_languages = {}
    in_words = {}
    for variant, pairs in data.vectors.overlap_of_languages.items():
        if len(pairs) <= 1:
            continue
        of_languages[variant] = pairs
        for (first, second), share in pairs.items():
            if first != second:
                in_words[f"{variant}, {first} and {second}"] = share
    if of_languages:
        caption = (
            "Places that the vectors of two languages share, in percent of the smaller one (the "
            "paper's Figure 3); first seed."
        )
        figure = figures.overlap_of_languages(of_languages)
        pictures.append(picture("overlap-languages", figure, caption, _in_words(in_words)))

    if not pictures:
        return None
    about = (
        "A vector changes only some of the model's weights. Where two vectors that are added "
        "change the same weights, they may get in each other's way; where they share few, each "
        "does its own work."
    )
    return Section("overlap", "What vectors share", about, pictures=pictures)


def ranks(data: ReportData) -> Section | None:
    """Singular values of the differences of weights, and the ranks that denoising kept."""
    pictures = []
    singular_values = spectra(data.run)
    if singular_values:
        caption = (
            "How much of a difference of weights its first r singular values hold, by layer; the "
            f"dotted line is 90%. For {' and '.join(singular_values)}."
        )
        alt = "Curves of the share of squared singular values by rank, one for each layer."
        figure = figures.spectra(singular_values)
        pictures.append(picture("spectra", figure, caption, alt))
    if data.vectors.ranks:
        caption = (
            "The rank that denoising kept, by layer and kind of matrix: mean over languages and "
            "seeds, the band from the least to the most; task vectors dashed."
        )
        alt = "Ranks kept by layer, one panel for each kind of matrix."
        styles = variant_styles(data.run.variants, data.baseline)
        figure = figures.ranks(data.vectors.ranks, styles)
        pictures.append(picture("ranks", figure, caption, alt))

    if not pictures:
        return None
    about = (
        "DeFT-X takes the change of each weight matrix apart into directions, the strongest "
        "first, and keeps the first r, its rank. A curve that rises quickly means that few "
        "directions tell most of what was learnt."
    )
    return Section("ranks", "Spectra and ranks", about, pictures=pictures)


def density(data: ReportData) -> Section | None:
    """Where the entries of the vectors lie, by layer and kind of tensor."""
    layers: set[int] = set()
    for shares in data.vectors.density.values():
        layers.update(layer for layer, _ in shares if layer is not None)
    if not layers:
        return None
    caption = (
        "The share of the weights that the vectors change, by layer (down) and kind of tensor "
        "(across), over languages and seeds. Each row of panels has a scale of its own."
    )
    alt = "Heat maps of the share of changed weights by layer and kind of tensor."
    drawing = picture("places", figures.density(data.vectors.density), caption, alt)
    shown = []
    outside = tables.outside_table(data.vectors.density)
    if outside is not None:
        shown.append(outside)
    about = (
        "A vector may change k weights, wherever they are: the ones that full fine-tuning changed "
        "most. Where they lie tells which parts of the model a language or a task needs."
    )
    title = "Where the changed weights lie"
    return Section("places", title, about, tables=shown, pictures=[drawing])


def training(data: ReportData) -> Section | None:
    """The curves of both phases."""
    curves = data.vectors.curves
    every_curve = []
    for by_variant in curves.values():
        for of_seeds in by_variant.values():
            every_curve += of_seeds
    styles = variant_styles(data.run.variants, data.baseline)

    pictures = []
    if any(curve.held_out for curve in every_curve):
        caption = (
            "On held-out data: phase 1 dashed, phase 2 solid; the band is from the least to the "
            "most of the seeds."
        )
        alt = "Held-out loss or score by training step for each language and the task."
        figure = figures.curves(curves, styles, held_out=True)
        pictures.append(picture("held-out", figure, caption, alt))
    if any(curve.training for curve in every_curve):
        caption = "On the data that is learnt from: phase 1 dashed, phase 2 solid."
        alt = "Training loss by step for each language and the task."
        figure = figures.curves(curves, styles, held_out=False)
        pictures.append(picture("training-loss", figure, caption, alt))

    if not pictures:
        return None
    about = (
        "Every vector is learnt twice: in phase 1 all weights move, to find out which matter; in "
        "phase 2 only these move, from the start again. A curve that still falls (a loss) or "
        "rises (a score) at its end would go on with more steps."
    )
    notes = [
        "Variants that differ only in what comes after phase 1 share it, and their dashed lines "
        "lie on each other."
    ]
    return Section("training", "How training went", about, notes, pictures=pictures)


def _in_words(shares: Mapping[str, float]) -> str:
    """Shares as text for people who cannot see the picture."""
    parts = [f"{name} {share:.0%}" for name, share in shares.items()]
    shown = parts[:SHARES_IN_WORDS]
    left_out = len(parts) - len(shown)
    if left_out:
        shown.append(f"and {left_out} more")
    return "; ".join(shown) + "."
