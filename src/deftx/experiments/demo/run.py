"""`deftx demo`: write the artificial languages down as files and a recipe, carry it out, and say
what to try next."""

import shlex
import shutil
from collections.abc import Callable, Iterator
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
# Matrices of this size are multiplied sooner by one core than they are shared out to several.
TWO_PROCESSES = partial(processes, jobs=2, threads=1)
NONE, LT_SFT, DEFT_X = "no language vector", "LT-SFT", "DeFT-X"
VARIANTS = {
    NONE: {"source": False, "target": False, "task": {"method": "lt-sft"}},
    LT_SFT: {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}},
    DEFT_X: {"language": {"method": "deftx"}, "task": {"method": "deftx"}},
}


def demo(out: Path, seed: int = 0, force: bool = False) -> list[Score]:
    """Run the whole method on the artificial languages; everything is left in `out`, as ordinary
    files.

    out/data holds text and labelled data, out/base the tiny base, out/recipe.yaml what is done with
    them, out/run what comes of it. A demo of the same seed that was stopped goes on. Raises
    DeftxError where another process is at work in `out`, and where it exists, unless `force` and it
    holds an earlier demo.
    """
    refuse_several_processes("the demo")
    written = yaml.safe_dump(recipe(seed), sort_keys=False)
    goes_on = _recipe_in(out) == written and not _composed(out).exists()
    if out.exists() and not goes_on:
        if not force:
            raise DeftxError(
                f"{out} exists: choose another folder with --out, or replace the demo there with --force"
            )
        if _recipe_in(out) is None:
            raise DeftxError(
                f"{out} exists and is not a demo, so --force does not replace it: choose another folder"
            )
    with lock_directory(out):
        if not goes_on:
            _clear(out)
        write_text(out / "recipe.yaml", written)
        write_data(out / "data", seed)
        shutil.copytree(BASE, out / "base", dirs_exist_ok=True)
        with _progress() as said:
            found = run_recipe(
                load_recipe(out / "recipe.yaml"), out / "run", None, TWO_PROCESSES, 2, said
            )
        plot(found, out / "demo.png")
        compose_one(out, seed)
    print(f"\nmacro-F1 (%) on languages without labelled data\n\n{table(found)}")
    print(next_commands(out))
    return found


def _recipe_in(out: Path) -> str | None:
    """What a demo left in `out` as its recipe; None where there is no demo."""
    file = out / "recipe.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _composed(out: Path) -> Path:
    """What a demo makes last."""
    return out / "models" / TARGETS[0]


def _clear(out: Path) -> None:
    """Remove all but the lock."""
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over all steps, with a line for the latest."""
    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        steps = bar.add_task("", total=None)
        yield lambda line, done, total: bar.update(
            steps, description=line.partition("] ")[2], completed=done, total=total
        )


def write_data(folder: Path, seed: int) -> None:
    """Plain text of the source and the target languages, and labelled data, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in (SOURCE, *TARGETS):
        _write(folder / f"{language}.txt", plain_text(language, LINES, seed))
    for part, size in SIZES.items():
        rows = labelled(part, size, seed)
        for language in TARGETS if part == "test" else [SOURCE]:
            said = [f"{say(meanings, language)}\t{label}" for meanings, label in rows]
            _write(folder / f"{language}-{part}.tsv", ["text\tlabel", *said])


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


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
        "contamination": "ignore",  # `write_data` keeps its clauses out; with so few words some lines are alike by chance
        "language": LANGUAGE,
        "task": TASK,
        "variants": VARIANTS,
    }


def plot(found: list[Score], path: Path) -> None:
    """A bar for each variant and language, as a picture; left out, with a word, where matplotlib is
    missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: for one, pip install 'deftx[plot]'")
        return
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, variant in enumerate(VARIANTS):
        heights = [
            100
            * mean(s.scores["macro_f1"] for s in found if (s.variant, s.language) == (variant, t))
            for t in TARGETS
        ]
        bars = axes.bar(
            [place + 0.27 * (number - 1) for place in range(len(TARGETS))],
            heights,
            0.25,
            label=variant,
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(TARGETS)), TARGETS)
    axes.set(
        ylim=(0, 108), ylabel="macro-F1 (%)", title="Sentiment in languages without labelled data"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=150)


def compose_one(out: Path, seed: int) -> None:
    """Put DeFT-X's task vector and first target vector where they are easily found, and compose
    them to a model."""
    found = vectors_of(out / "run", DEFT_X, seed)
    folders = {name: out / "vectors" / name for name in ("task", *TARGETS)}
    for name, folder in folders.items():
        shutil.copytree(found[name], folder, dirs_exist_ok=True)
    model = compose(out / "base", load(folders["task"]), load(folders[TARGETS[0]]))
    save_model(model, load_tokenizer(out / "base"), _composed(out))


def next_commands(out: Path) -> str:
    """What to try next, as lines to paste into the shell that the demo was started from."""
    deftx = program_name()
    target = TARGETS[0]
    base, vectors = quoted(out / "base"), out / "vectors"
    task, language = quoted(vectors / "task"), quoted(vectors / target)
    by_name = shlex.quote(f"{target}={vectors / target}")
    test, model = quoted(out / "data" / f"{target}-test.tsv"), quoted(_composed(out))
    recipe, run = quoted(out / "recipe.yaml"), quoted(out / "run")
    commands = [
        f"{deftx} inspect {task} {language}",
        f"{deftx} predict {test} --model {model}",
        f"{deftx} evaluate --base {base} --task {task} --language {by_name} --test {test}",
        f"{deftx} run {recipe} --out {run} --set variants.DeFT-X.task.rank=8",
    ]
    lines = [
        f"The bars are in {out / 'demo.png'}, a composed model in {_composed(out)}. Next:",
        *(f"  {command}" for command in commands),
    ]
    if deftx != "deftx":
        activate = shlex.quote(str(Path(shlex.split(deftx)[0]).parent / "activate"))
        lines.append(f"To type `deftx` alone, first: source {activate}")
    return "\n".join(lines)


def quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))
