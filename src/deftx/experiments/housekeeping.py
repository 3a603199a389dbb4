"""What runs there are, and freeing the room that nobody needs any more."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deftx.errors import DeftxError, Locked
from deftx.experiments.run import SCORING
from deftx.experiments.run_folder import STEPS, Step, read_steps
from deftx.experiments.store import RECORD, Store, size
from deftx.storage.atomic_files import lock_directory, remove_folder


@dataclass(frozen=True)
class About:
    """A run: its folder, how many of its steps and scores are done, and the bytes that its steps
    take in the store."""

    folder: Path
    steps: int
    done: int
    scores: int
    scored: int
    bytes: int


def runs(folder: Path) -> list[About]:
    """The runs whose folders are in `folder`, by name. Raises DeftxError where there is no such
    folder."""
    if not folder.is_dir():
        raise DeftxError(f"there is no folder {folder}: give the one that runs are in")
    return [_about(file.parent) for file in sorted(folder.glob(f"*/{STEPS}"))]


def _about(run: Path) -> About:
    about = read_steps(run)
    store, kinds = run / about.store, {step.id: step.kind for step in about.steps}
    done = [step for step in kinds if (store / step / RECORD).is_file()]
    scores = [step for step, kind in kinds.items() if kind in SCORING]
    taken = sum(size(store / step) for step in done)
    return About(
        run,
        len(kinds),
        len(done),
        len(scores),
        len([step for step in scores if step in done]),
        taken,
    )


def prunable(store: Store, runs: Path, *, deltas: bool) -> list[Path]:
    """The folders in a store that can go: steps that no run comes to, what stopped steps of no run
    left behind, and with `deltas` what phase 1 learnt of all vectors that are finished (to be
    learnt again for another method, rank or k). Runs are those in the folder `runs`, and those that
    the store has noted, which are still there and use it.

    Raises DeftxError where there are none, so that all would go.
    """
    wanted, needed = set[str](), set[str]()
    for step in chain.from_iterable(_using(store, runs)):
        wanted.add(step.id)
        if step.kind == "vector" and not store.done(step.id):
            needed.update(step.inputs)

    def superfluous(folder: Path) -> bool:
        if folder.parent == store.steps:
            return deltas and folder.name.startswith("delta-") and folder.name not in needed
        return store.done(folder.name)

    there = [*store.steps.glob("[!.]*-*"), *store.root.glob("work/*-*")]
    if there and not wanted:
        why = "so all of it would go: say where its --runs are"
        raise DeftxError(f"no run in {runs} uses the store {store.root}, {why}")
    return [folder for folder in there if superfluous(folder) or folder.name not in wanted]


def _using(store: Store, runs: Path) -> Iterator[tuple[Step, ...]]:
    """The steps of each run that uses a store."""
    noted = [run for run in store.recorded_runs() if (run / STEPS).is_file()]
    for run in {
        folder.resolve() for folder in [*noted, *(file.parent for file in runs.glob(f"*/{STEPS}"))]
    }:
        about = read_steps(run)
        if (run / about.store).resolve() == store.steps.resolve():
            yield about.steps


def prune(store: Store, folders: list[Path]) -> int:
    """Remove folders of a store, but for those of steps that a process is at; the bytes that were
    freed."""
    freed = 0
    for folder in folders:
        with suppress(Locked), lock_directory(store.checkpoint_dir(folder.name)):
            freed += size(folder)
            remove_folder(folder)
    return freed


def store_at(path: Path) -> Store:
    """The store in a folder. Raises DeftxError where there is none."""
    if not (path / "steps").is_dir():
        raise DeftxError(
            f"{path} is not a store: give the folder with `steps` in it, such as runs/store"
        )
    return Store(path)
