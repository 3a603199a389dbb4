"""`deftx demo`: write the artificial languages and a recipe as files, run it, and say what to try
next."""

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deftx.errors import DeftxError
from deftx.experiments.demo.languages import SOURCE, TARGETS, labelled, plain_text, say
from deftx.experiments.executors import processes
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import Score, run_recipe, table, vectors_of
from deftx.messages import program_name
from deftx.models.compose import compose
from deftx.models.saving import save_model
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.atomic_files import LOCK, lock_directory, write_text
from deftx.storage.vector_files import load
from deftx.training.distributed import refuse_several_processes

BASE = Path(__file__).parent / "base"
LINES = 6000  # of plain text in each language
SIZES = {"train": 2000, "valid": 300, "test": 400}  # of labelled data
LANGUAGE = {
    "k": "20%",
    "training": {
        "learning_rate": 5e-3,
        "batch_size": 24,
        "length": 48,
        "precision": "fp32",
        "max_steps": 300,
        "min_steps": 0,
        "evaluate_every": 100,
    },
}
TASK = {
    "k": "20%",
    "training": {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "length": 48,
        "precision": "fp32",
        "max_steps": 400,
        "evaluate_every": 100,
    },
}
# Matrices of this size are multiplied faster by one core than by several.
TWO_PROCESSES = partial(processes, jobs=2, threads=1)
NONE = "no language vector"
LT_SFT = "LT-SFT"
DEFT_X = "DeFT-X"
VARIANTS = {
    NONE: {"source": False, "target": False, "task": {"method": "lt-sft"}},
    LT_SFT: {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}},
    DEFT_X: {"language": {"method": "deftx"}, "task": {"method": "deftx"}},
}


def demo(out: Path, seed: int = 0, force: bool = False) -> list[Score]:
    """Run the whole method on the artificial languages; everything is left in `out`, as ordinary
    files.

    out/data         text and labelled data
    out/base         the tiny base
    out/recipe.yaml  what is done with them
    out/run          the run of the recipe
    out/vectors      the task vector and the vectors of the targets
    out/models       a composed model

    Args:
        out: The folder. A demo of the same seed that was stopped there is resumed.
        seed: Of the texts and the training.
        force: Whether another demo in `out` is replaced.

    Returns:
        The scores of all variants.

    Raises:
        DeftxError: Where another process is at work in `out`, and where it exists, unless `force`
            and it holds a demo.
    """
    refuse_several_processes("the demo")
    recipe_text = yaml.safe_dump(recipe(seed), sort_keys=False)
    recipe_before = _recipe_in(out)
    is_resumed = recipe_before == recipe_text and not _composed(out).exists()
    if out.exists() and not is_resumed:
        if not force:
            fix = "choose another folder with --out, or replace the demo there with --force"
            raise DeftxError(f"{out} exists: {fix}")
        if recipe_before is None:
            problem = f"{out} exists and is not a demo, so --force does not replace it"
            raise DeftxError(f"{problem}: choose another folder")

    with lock_directory(out):
        if not is_resumed:
            _clear(out)
        write_text(out / "recipe.yaml", recipe_text)
        write_data(out / "data", seed)
        shutil.copytree(BASE, out / "base", dirs_exist_ok=True)
        with _progress() as report_progress:
            scores = run_recipe(
                load_recipe(out / "recipe.yaml"),
                out / "run",
                None,
                TWO_PROCESSES,
                2,
                report_progress,
            )
        plot(scores, out / "demo.png")
        compose_one(out, seed)
    print(f"\nmacro-F1 (%) on languages without labelled data\n\n{table(scores)}")
    print(next_commands(out))
    return scores


def _recipe_in(out: Path) -> str | None:
    """The recipe that a demo left in `out`; None where there is no demo."""
    file = out / "recipe.yaml"
    if not file.is_file():
        return None
    return file.read_text(encoding="utf-8")


def _composed(out: Path) -> Path:
    """The folder of the composed model, which a demo makes last."""
    return out / "models" / TARGETS[0]


def _clear(out: Path) -> None:
    """Remove everything in a folder but the lock."""
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over all steps, with a line for the latest one."""
    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        steps = bar.add_task("", total=None)

        def report(line: str, done: int, total: int) -> None:
            _, _, description = line.partition("] ")  # without the number of the step
            bar.update(steps, description=description, completed=done, total=total)

        yield report


def write_data(folder: Path, seed: int) -> None:
    """Write plain text of the source and the targets, and labelled data: for training in the
    source, for testing in the targets."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in (SOURCE, *TARGETS):
        _write_lines(folder / f"{language}.txt", plain_text(language, LINES, seed))
    for part, size in SIZES.items():
        examples = labelled(part, size, seed)
        languages = TARGETS if part == "test" else [SOURCE]
        for language in languages:
            rows = ["text\tlabel"]
            for meanings, label in examples:
                rows.append(f"{say(meanings, language)}\t{label}")
            _write_lines(folder / f"{language}-{part}.tsv", rows)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file, a line feed after every line."""
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def recipe(seed: int) -> dict[str, object]:
    """What the demo does, as a recipe in `out`."""
    return {
        "base": "base",
        "seeds": [seed],
        "source": SOURCE,
        "train": f"data/{SOURCE}-train.tsv",
        "valid": f"data/{SOURCE}-valid.tsv",
        "languages": {name: f"data/{name}.txt" for name in (SOURCE, *TARGETS)},
        "test": {name: f"data/{name}-test.tsv" for name in TARGETS},
        # no clause of test data is in `write_data`'s other texts; with so few words, some lines
        # are alike by chance
        "contamination": "ignore",
        "language": LANGUAGE,
        "task": TASK,
        "variants": VARIANTS,
    }


def plot(scores: Sequence[Score], path: Path) -> None:
    """Draw a bar for each variant and target, as a picture; without matplotlib, say so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: for one, pip install 'deftx[plot]'")
        return
    percent_by_bar: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        of_bar = percent_by_bar.setdefault((score.variant, score.language), [])
        of_bar.append(100 * score.scores["macro_f1"])

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(TARGETS))
    for number, variant in enumerate(VARIANTS):
        heights = [mean(percent_by_bar[variant, target]) for target in TARGETS]
        shift = 0.27 * (number - 1)
        centres = [place + shift for place in places]
        bars = axes.bar(centres, heights, 0.25, label=variant)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    title = "Sentiment in languages without labelled data"
    axes.set_xticks(places, TARGETS)
    axes.set(ylim=(0, 108), ylabel="macro-F1 (%)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=150)


def compose_one(out: Path, seed: int) -> None:
    """Copy DeFT-X's vectors to out/vectors, and compose the task's and the first target's to a
    model."""
    finished = vectors_of(out / "run", DEFT_X, seed)
    vectors = out / "vectors"
    for name in ("task", *TARGETS):
        shutil.copytree(finished[name], vectors / name, dirs_exist_ok=True)
    task = load(vectors / "task")
    language = load(vectors / TARGETS[0])
    model = compose(out / "base", task, language)
    save_model(model, load_tokenizer(out / "base"), _composed(out))


def next_commands(out: Path) -> str:
    """What to try next, as lines to paste into the shell that the demo was started from."""
    deftx = program_name()
    target = TARGETS[0]
    target_vector = out / "vectors" / target
    base = quoted(out / "base")
    task = quoted(out / "vectors" / "task")
    language = quoted(target_vector)
    language_by_name = shlex.quote(f"{target}={target_vector}")
    test = quoted(out / "data" / f"{target}-test.tsv")
    model = quoted(_composed(out))
    recipe_file = quoted(out / "recipe.yaml")
    run_folder = quoted(out / "run")

    vectors = f"--task {task} --language {language_by_name}"
    lines = [
        f"The bars are in {out / 'demo.png'}, a composed model in {_composed(out)}. Next:",
        f"  {deftx} inspect {task} {language}",
        f"  {deftx} predict {test} --model {model}",
        f"  {deftx} evaluate --base {base} {vectors} --test {test}",
        f"  {deftx} run {recipe_file} --out {run_folder} --set variants.DeFT-X.task.rank=8",
    ]
    if deftx != "deftx":
        program = Path(shlex.split(deftx)[0])
        activate = shlex.quote(str(program.parent / "activate"))
        lines.append(f"To type `deftx` alone, first: source {activate}")
    return "\n".join(lines)


def quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))
