"""The sections on vectors: what they share, what denoising kept, where their entries lie, how they
were learnt."""

from statistics import mean

from deftx.experiments.report import figures, tables
from deftx.experiments.report.parts import Findings, Section, picture
from deftx.experiments.report.style import looks
from deftx.experiments.report.vectors import spectra


def overlaps(found: Findings) -> Section | None:
    """How many places vectors have in common (paper, Figures 2 and 3)."""
    seen, pictures = found.seen, []
    if seen.with_task:
        pictures.append(
            picture(
                "overlap-task",
                figures.overlap_with_task(seen.with_task),
                "Places that a language's vector shares with the task's vector, in percent of the smaller one "
                "(the paper's Figure 2); mean over the seeds.",
                _in_words(
                    {f"{variant}, {name}": mean(v) for (variant, name), v in seen.with_task.items()}
                ),
            )
        )
    shared = {variant: pairs for variant, pairs in seen.languages.items() if len(pairs) > 1}
    if shared:
        pictures.append(
            picture(
                "overlap-languages",
                figures.overlap_of_languages(shared),
                "Places that the vectors of two languages share, in percent of the smaller one (the paper's Figure 3); "
                "first seed.",
                _in_words(
                    {
                        f"{v}, {a} and {b}": s
                        for v, by in shared.items()
                        for (a, b), s in by.items()
                        if a != b
                    }
                ),
            )
        )
    about = (
        "A vector changes only some of the model's weights. Where two vectors that are added change the same weights, "
        "they may get in each other's way; where they share few, each does its own work."
    )
    return Section("overlap", "What vectors share", about, pictures=pictures) if pictures else None


def ranks(found: Findings) -> Section | None:
    """Singular values of the differences of weights, and the ranks that denoising kept."""
    pictures, singular = [], spectra(found.run)
    shades = looks(found.run.variants, found.baseline)
    if singular:
        pictures.append(
            picture(
                "spectra",
                figures.spectra(singular),
                "How much of a difference of weights its first r singular values hold, by layer; the dotted line is "
                f"90%. For {' and '.join(singular)}.",
                "Curves of the share of squared singular values by rank, one for each layer.",
            )
        )
    if found.seen.ranks:
        pictures.append(
            picture(
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


def places(found: Findings) -> Section | None:
    """Where the entries of the vectors lie, by layer and kind of tensor."""
    if not any(layer is not None for by in found.seen.places.values() for layer, _ in by):
        return None
    outside = tables.outside_table(found.seen.places)
    drawing = picture(
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
        "places",
        "Where the changed weights lie",
        about,
        tables=[outside] if outside else [],
        pictures=[drawing],
    )


def training(found: Findings) -> Section | None:
    """The curves of both phases."""
    curves, shades = found.seen.curves, looks(found.run.variants, found.baseline)
    held = any(one.held_out for by in curves.values() for some in by.values() for one in some)
    trained = any(one.training for by in curves.values() for some in by.values() for one in some)
    pictures = []
    if held:
        pictures.append(
            picture(
                "held-out",
                figures.curves(curves, shades, held_out=True),
                "On held-out data: phase 1 dashed, phase 2 solid; the band is from the least to the most of the seeds.",
                "Held-out loss or score by training step for each language and the task.",
            )
        )
    if trained:
        pictures.append(
            picture(
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
    return (
        Section("training", "How training went", about, notes, pictures=pictures)
        if pictures
        else None
    )


def _in_words(shares: dict[str, float]) -> str:
    """Shares as text for those who cannot see the picture; no more than fits a breath."""
    parts = [f"{name} {share:.0%}" for name, share in shares.items()]
    return (
        "; ".join(parts[:20]) + (f"; and {len(parts) - 20} more" if len(parts) > 20 else "") + "."
    )
