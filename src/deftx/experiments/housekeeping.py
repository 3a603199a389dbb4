"""What runs there are, and freeing the room that nobody needs any more."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deftx.errors import DeftxError, Locked
from deftx.experiments.run import SCORING
from deftx.experiments.run_folder import STEPS, StepRecord, read_steps
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
    """The runs whose folders are in `folder`, by name.

    Raises:
        DeftxError: There is no such folder.
    """
    if not folder.is_dir():
        raise DeftxError(f"there is no folder {folder}: give the one that runs are in")
    return [_about(file.parent) for file in sorted(folder.glob(f"*/{STEPS}"))]


def _about(run: Path) -> About:
    """How far the run in a folder has come."""
    listed = read_steps(run)
    store = run / listed.store
    kinds = {step.id: step.kind for step in listed.steps}
    done = [step_id for step_id in kinds if (store / step_id / RECORD).is_file()]
    scoring = [step_id for step_id, kind in kinds.items() if kind in SCORING]
    scored = [step_id for step_id in scoring if step_id in done]
    return About(
        folder=run,
        steps=len(kinds),
        done=len(done),
        scores=len(scoring),
        scored=len(scored),
        bytes=sum(size(store / step_id) for step_id in done),
    )


def prunable(store: Store, runs: Path, *, deltas: bool) -> list[Path]:
    """The folders in a store that no run needs any more.

    These are steps that belong to no run, checkpoints of finished steps and of steps that belong
    to no run, and with `deltas` phase 1 of finished vectors, which another method, rank or k would
    have to learn again.

    Args:
        store: The store.
        runs: A folder with runs. Runs that the store has recorded count too, where they are still
            there and use it.
        deltas: Whether phase 1 of finished vectors can go.

    Raises:
        DeftxError: No run uses the store, so that everything would go.
    """
    wanted = set[str]()
    needed_deltas = set[str]()
    for step in chain.from_iterable(_steps_of_runs(store, runs)):
        wanted.add(step.id)
        if step.kind == "vector" and not store.done(step.id):
            needed_deltas.update(step.inputs)

    finished = list(store.steps.glob("[!.]*-*"))
    checkpoints = list(store.root.glob("work/*-*"))
    if (finished or checkpoints) and not wanted:
        why = "so all of it would go: say where its --runs are"
        raise DeftxError(f"no run in {runs} uses the store {store.root}, {why}")

    folders = []
    for folder in finished:
        is_delta = folder.name.startswith("delta-")
        superfluous = deltas and is_delta and folder.name not in needed_deltas
        if superfluous or folder.name not in wanted:
            folders.append(folder)
    for folder in checkpoints:
        if store.done(folder.name) or folder.name not in wanted:
            folders.append(folder)
    return folders


def _steps_of_runs(store: Store, runs: Path) -> Iterator[tuple[StepRecord, ...]]:
    """The steps of each run that uses a store, of those in a folder and those it has recorded."""
    folders = {file.parent.resolve() for file in runs.glob(f"*/{STEPS}")}
    for folder in store.recorded_runs():
        if (folder / STEPS).is_file():
            folders.add(folder.resolve())
    for folder in folders:
        listed = read_steps(folder)
        if (folder / listed.store).resolve() == store.steps.resolve():
            yield listed.steps


def prune(store: Store, folders: list[Path]) -> int:
    """Remove folders of a store, except those of steps that a process is computing.

    Returns:
        The bytes that were freed.
    """
    freed = 0
    for folder in folders:
        with suppress(Locked), lock_directory(store.checkpoint_dir(folder.name)):
            freed += size(folder)
            remove_folder(folder)
    return freed


def store_at(path: Path) -> Store:
    """The store in a folder.

    Raises:
        DeftxError: There is none.
    """
    if not (path / "steps").is_dir():
        raise DeftxError(
            f"{path} is not a store: give the folder with `steps` in it, such as runs/store"
        )
    return Store(path)
