"""What runs there are, and freeing the room that nobody needs any more."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deftx.errors import DeftxError, InUse
from deftx.experiments.run import SCORED, STEPS, read_steps
from deftx.experiments.store import Store, size
from deftx.storage.folders import claimed


@dataclass(frozen=True)
class About:
    """A run: its folder, how many of its steps and scores are done, and the bytes that its steps take in the store."""

    folder: Path
    steps: int
    done: int
    scores: int
    scored: int
    bytes: int


def runs(folder: Path) -> list[About]:
    """The runs whose folders are in `folder`, by name."""
    return [_about(file.parent) for file in sorted(folder.glob(f"*/{STEPS}"))]


def _about(run: Path) -> About:
    about = read_steps(run)
    store, kinds = run / about["store"], {step["id"]: step["kind"] for step in about["steps"]}
    done = [step for step in kinds if (store / step / "step.json").is_file()]
    scores = [step for step, kind in kinds.items() if kind in SCORED]
    taken = sum(size(store / step) for step in done)
    return About(run, len(kinds), len(done), len(scores), len([step for step in scores if step in done]), taken)


def prunable(store: Store, runs: Path, *, deltas: bool) -> Iterator[Path]:
    """The folders in a store that can go: steps that no run in the folder `runs` comes to, what stopped steps of no run
    left behind, and with `deltas` what phase 1 learnt of all vectors that are finished (to be learnt again for
    another method, rank or k)."""
    wanted, needed = set[str](), set[str]()
    for file in runs.glob(f"*/{STEPS}"):
        for step in read_steps(file.parent)["steps"]:
            wanted.add(step["id"])
            if step["kind"] == "vector" and not store.done(step["id"]):
                needed.update(step["inputs"])
    for folder in [*store.steps.glob("[!.]*-*"), *store.root.glob("work/*-*")]:
        if folder.parent == store.steps:
            superfluous = deltas and folder.name.startswith("delta-") and folder.name not in needed
        else:
            superfluous = store.done(folder.name)
        if superfluous or folder.name not in wanted:
            yield folder


def prune(store: Store, folders: list[Path]) -> int:
    """Remove folders of a store, but for those of steps that a process is at; the bytes that were freed."""
    freed = 0
    for folder in folders:
        with suppress(InUse), claimed(store.work(folder.name)):
            freed += size(folder)
            shutil.rmtree(folder)
    return freed


def store_at(path: Path) -> Store:
    """The store in a folder. Raises DeftxError where there is none."""
    if not (path / "steps").is_dir():
        raise DeftxError(f"{path} is not a store: give the folder with `steps` in it, such as runs/store")
    return Store(path.resolve())
