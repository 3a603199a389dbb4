"""Where finished steps are kept: a folder that several runs and processes can share.

STORE/steps/ID/          a finished step, complete or not there: step.json, log.txt, and the result
                         of its kind of step
STORE/work/ID/           checkpoints of a step that is under way or was interrupted
STORE/data/DIGEST.json   texts and labelled data, named after their content
STORE/data/DIGEST/       a finished vector that a recipe names, named after its content too
STORE/runs/DIGEST.txt    the folder of a run that uses the store
STORE/bases/ID.txt       a fingerprint of how the tokenizer of a base encodes texts
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.errors import DeftxError, Locked, space_needed
from deftx.storage.atomic_files import LOCK, lock_directory, new_folder, remove_folder, write_text
from deftx.storage.provenance_json import provenance_to_json
from deftx.storage.vector_files import save

# files of every finished step
RECORD = "step.json"
LOG = "log.txt"
# files and folders that some kinds of steps make
VECTOR = "vector"
ADAPTER = "adapter"
PREDICTIONS = "predictions.json"
SCORES = "scores.json"

VECTOR_FILES = (f"{VECTOR}/vector.json", f"{VECTOR}/vector.safetensors")
# what a finished step of a kind holds at least, as patterns
NEEDED = {
    "delta": ("phase1*.safetensors",),
    "vector": VECTOR_FILES,
    "given": VECTOR_FILES,
    "adapter": (f"{ADAPTER}/*",),
    "score": (SCORES, PREDICTIONS),
    "ngrams": (SCORES, PREDICTIONS),
}

# Computes a step, given the folder for its checkpoints and the folder for its result.
Compute = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Store:
    """The store in the folder `root`."""

    root: Path

    @property
    def steps(self) -> Path:
        """The folder of the finished steps."""
        return self.root / "steps"

    def folder(self, step_id: str) -> Path:
        """The folder of a finished step."""
        return self.steps / step_id

    def checkpoint_dir(self, step_id: str) -> Path:
        """The folder for the checkpoints of a step."""
        return self.root / "work" / step_id

    def done(self, step_id: str) -> bool:
        """Whether a step is finished, and its result is there."""
        folder = self.folder(step_id)
        if not (folder / RECORD).is_file():
            return False
        kind = step_id.partition("-")[0]
        return all(any(folder.glob(pattern)) for pattern in NEEDED.get(kind, ()))

    def result(self, step_id: str, name: str) -> Any:
        """The content of the JSON file `name` of a finished step.

        Raises:
            DeftxError: The file is damaged.
        """
        folder = self.folder(step_id)
        checksums = read_json(folder / RECORD).get("sha256", {})
        check_sum(folder / name, checksums.get(name))
        return read_json(folder / name)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished steps."""
        for file in self.steps.glob(f"[!.]*/{RECORD}"):
            yield read_json(file)

    def record_run(self, run: Path) -> None:
        """Record that the run in a folder uses this store."""
        folder = str(run.resolve())
        write_text(self.root / "runs" / f"{_digest(os.fsencode(folder))}.txt", folder)

    def recorded_runs(self) -> list[Path]:
        """The folders of all recorded runs, which may be gone since."""
        files = sorted(self.root.glob("runs/*.txt"))
        return [Path(file.read_text(encoding="utf-8")) for file in files]

    def record_tokenizer(self, base: str, fingerprint: str) -> None:
        """Record how the tokenizer of a base encodes texts.

        Args:
            base: A name of the base by its content.
            fingerprint: A fingerprint of what its tokenizer makes of some texts.

        Raises:
            DeftxError: Another fingerprint was recorded, so finished steps cannot be used.
        """
        file = self.root / "bases" / f"{base}.txt"
        if not file.is_file():
            write_text(file, fingerprint)
        elif file.read_text(encoding="utf-8") != fingerprint:
            when = f"than when the steps in {self.root} were made: use another store"
            raise DeftxError(f"the base's tokenizer reads texts otherwise now {when}")

    def put(self, texts: Sequence[str] | Examples) -> str:
        """Keep texts or labelled data.

        Returns:
            The name of their content.
        """
        data: Any = list(texts) if not isinstance(texts, Examples) else asdict(texts)
        content = json.dumps(data, ensure_ascii=False)
        digest = _digest(content.encode(errors="surrogatepass"))
        if not self._data_file(digest).exists():
            write_text(self._data_file(digest), content)
        return digest

    def texts(self, digest: str) -> list[str]:
        """Texts that were `put` here, by the name of their content."""
        texts: list[str] = self._data(digest)
        return texts

    def examples(self, digest: str) -> Examples:
        """Labelled data that were `put` here, by the name of their content."""
        return Examples(**self._data(digest))

    def _data(self, digest: str) -> Any:
        """Texts or labelled data, whose checksum is their name."""
        file = self._data_file(digest)
        check_sum(file, digest)
        return read_json(file)

    def _data_file(self, digest: str) -> Path:
        return self.root / "data" / f"{digest}.json"

    def put_vector(self, vector: SparseVector) -> str:
        """Keep a finished vector.

        Returns:
            The name of its content.
        """
        record = provenance_to_json(vector.provenance)
        content = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
        for name, delta in vector.tensors.items():
            content.update(f"{name} {delta.shape}".encode())
            content.update(delta.indices.cpu().numpy().tobytes())
            content.update(delta.values.cpu().float().numpy().tobytes())
        digest = content.hexdigest()[:16]
        if not self.given_vector(digest).exists():
            save(vector, self.given_vector(digest))
        return digest

    def given_vector(self, digest: str) -> Path:
        """The folder of a vector that was put here, by the name of its content."""
        return self.root / "data" / digest

    def make(self, step_id: str, record: Mapping[str, Any], compute: Compute) -> None:
        """Compute a step, unless it is finished; the result is there completely or not at all.

        Args:
            step_id: The step.
            record: What is recorded of it, besides how long it took and with which versions.
            compute: Writes the result. Called again after an interruption, it finds the
                checkpoints that it wrote before.

        Raises:
            Locked: Another process is computing the step.
            NoSpace: The disk is full.
        """
        began = monotonic()
        folder = self.folder(step_id)
        checkpoint_dir = self.checkpoint_dir(step_id)
        with space_needed(folder), lock_directory(checkpoint_dir):
            if self.done(step_id):  # by another process, before the lock
                return
            if folder.exists():  # an older version was killed while it removed the step
                remove_folder(folder)
            with new_folder(folder) as new:
                with _logged(checkpoint_dir / LOG):
                    compute(checkpoint_dir, new)
                shutil.copyfile(checkpoint_dir / LOG, new / LOG)
                write_record(new, {"id": step_id, **record}, monotonic() - began)
            _empty(checkpoint_dir)

    def remove_leftovers(self, step_ids: Iterable[str]) -> None:
        """Remove the checkpoints of finished steps, which stay where a process is killed at the
        end."""
        for step_id in step_ids:
            checkpoint_dir = self.checkpoint_dir(step_id)
            if checkpoint_dir.is_dir() and self.done(step_id):
                with suppress(Locked), lock_directory(checkpoint_dir):
                    _empty(checkpoint_dir)


def write_record(folder: Path, record: Mapping[str, Any], seconds: float) -> None:
    """Write the record of a step that is finished.

    Args:
        folder: The step's folder, with its result.
        record: What to record, besides the time, the versions and the checksums of small files.
        seconds: How long the step took.
    """
    packages = ("deftx", "torch", "transformers")
    whole_record = {
        **record,
        "seconds": round(seconds, 3),
        "versions": {package: version(package) for package in packages},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": {file.name: _sha256(file) for file in sorted(folder.glob("*.json"))},
    }
    content = json.dumps(whole_record, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(content, encoding="utf-8")


def check_sum(path: Path, expected: str | None) -> None:
    """Check that a file is not damaged.

    Args:
        path: The file; one that does not exist is not checked.
        expected: What its SHA-256 begins with; None for steps of older versions, which have no
            checksums.

    Raises:
        DeftxError: The SHA-256 is another one.
    """
    if expected is None or not path.is_file():
        return
    if not _sha256(path).startswith(expected):
        what = "is damaged (its checksum is not the one that was kept)"
        raise DeftxError(f"{path} {what}: {_remedy(path)}")


def read_json(path: Path) -> Any:
    """The content of a JSON file of a store.

    Raises:
        DeftxError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeftxError(f"{path} is damaged ({error}): {_remedy(path)}") from None


def _digest(content: bytes) -> str:
    """The name of a content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(path: Path) -> str:
    """What to do about a damaged file: data are files of their own, steps are folders."""
    what = path.parent
    if path.parent.name == "data":
        what = path
    return f"remove {what}, and it is made again"


def _empty(checkpoint_dir: Path) -> None:
    """Remove all that a finished step left among its checkpoints, but for the lock."""
    for path in checkpoint_dir.iterdir():
        if path.is_dir():  # a half-written file, left by a crash
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


class _LogFile(logging.FileHandler):
    """A log file that does not print a traceback where the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: writing the result will fail too, and raises."""


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Within the block, the log of trainings goes to a file too."""
    log = logging.getLogger("deftx")
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


def size(folder: Path) -> int:
    """The bytes that the files of a folder take; a file with several names counts in part."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            total += path.stat().st_size // path.stat().st_nlink
    return total
