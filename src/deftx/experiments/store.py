"""Where finished steps are kept: a folder that runs share, and that several processes may use at
once.

STORE/steps/ID/          a finished step, whole or not there: step.json, log.txt, and what its kind
                         of step makes
STORE/work/ID/           one that is under way or was stopped, and goes on from there
STORE/data/DIGEST.json   texts and labelled data, named by their content
STORE/data/DIGEST/       a finished vector that a recipe takes, named so too
STORE/runs/DIGEST.txt    the folder of a run that uses it
STORE/bases/ID.txt       how the tokenizer of a base reads
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.errors import DeftxError, Locked
from deftx.storage.atomic_files import LOCK, lock_directory, new_folder, remove_folder, write_text
from deftx.storage.vector_files import save

RECORD, LOG = "step.json", "log.txt"  # of every step
VECTOR, ADAPTER, PREDICTIONS, SCORES = (
    "vector",
    "adapter",
    "predictions.json",
    "scores.json",
)  # of kinds of them
# what a finished step of a kind holds at the least; files as patterns
NEEDED = {
    "delta": ("phase1*.safetensors",),
    "vector": (f"{VECTOR}/vector.json", f"{VECTOR}/vector.safetensors"),
    "adapter": (f"{ADAPTER}/*",),
    "score": (SCORES, PREDICTIONS),
    "ngrams": (SCORES, PREDICTIONS),
}


@dataclass(frozen=True)
class Store:
    """The store in the folder `root`."""

    root: Path

    @property
    def steps(self) -> Path:
        """The folder of the finished steps."""
        return self.root / "steps"

    def folder(self, step_id: str) -> Path:
        """Where a finished step is."""
        return self.steps / step_id

    def checkpoint_dir(self, step_id: str) -> Path:
        """Where a step works."""
        return self.root / "work" / step_id

    def done(self, step_id: str) -> bool:
        """Whether a step is finished, and what its kind of step makes is there."""
        folder = self.folder(step_id)
        needed = NEEDED.get(step_id.partition("-")[0], ())
        return (folder / RECORD).is_file() and all(any(folder.glob(pattern)) for pattern in needed)

    def result(self, step_id: str, name: str) -> Any:
        """What the JSON file `name` of a finished step holds. Raises DeftxError where it is
        damaged."""
        folder = self.folder(step_id)
        checksums = read_json(folder / RECORD).get("sha256", {})
        check_sum(folder / name, checksums.get(name))
        return read_json(folder / name)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is noted of all finished steps."""
        for file in self.steps.glob(f"[!.]*/{RECORD}"):
            yield read_json(file)

    def note_run(self, run: Path) -> None:
        """Note that the run in a folder uses this store."""
        folder = str(run.resolve())
        write_text(
            self.root / "runs" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.txt",
            folder,
        )

    def note_tokenizer(self, base: str, reading: str) -> None:
        """Note how the tokenizer of a base reads. Raises DeftxError where it read otherwise when
        steps were made."""
        note = self.root / "bases" / f"{base}.txt"
        if not note.is_file():
            write_text(note, reading)
        elif note.read_text(encoding="utf-8") != reading:
            when = f"than when the steps in {self.root} were made: use another store"
            raise DeftxError(f"the base's tokenizer reads texts otherwise now {when}")

    def noted_runs(self) -> list[Path]:
        """The folders that were noted, whether there are runs still or not."""
        return [
            Path(file.read_text(encoding="utf-8")) for file in sorted(self.root.glob("runs/*.txt"))
        ]

    def put(self, texts: Sequence[str] | Examples) -> str:
        """Keep texts or labelled data; the name of their content."""
        content = json.dumps(
            asdict(texts) if isinstance(texts, Examples) else list(texts), ensure_ascii=False
        )
        digest = hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]
        if not self._data(digest).exists():
            write_text(self._data(digest), content)
        return digest

    def texts(self, digest: str) -> list[str]:
        """Texts that were put here."""
        texts: list[str] = self._content(digest)
        return texts

    def examples(self, digest: str) -> Examples:
        """Labelled data that were put here."""
        return Examples(**self._content(digest))

    def _content(self, digest: str) -> Any:
        """Texts or labelled data, whose checksum is their name."""
        path = self._data(digest)
        check_sum(path, digest)
        return read_json(path)

    def put_vector(self, vector: SparseVector) -> str:
        """Keep a finished vector; the name of its content."""
        content = hashlib.sha256(json.dumps(dict(vector.info), sort_keys=True).encode())
        for name, entries in vector.tensors.items():
            content.update(f"{name} {entries.shape}".encode())
            content.update(entries.indices.cpu().numpy().tobytes())
            content.update(entries.values.cpu().float().numpy().tobytes())
        digest = content.hexdigest()[:16]
        if not self.given_vector(digest).exists():
            save(vector, self.given_vector(digest))
        return digest

    def given_vector(self, digest: str) -> Path:
        """The folder of a vector that was put here."""
        return self.root / "data" / digest

    def _data(self, digest: str) -> Path:
        return self.root / "data" / f"{digest}.json"

    @contextmanager
    def making(self, step_id: str, about: Mapping[str, Any]) -> Iterator[tuple[Path, Path]]:
        """The folder of work of a step, and a new folder that is the finished step at the end of
        the block.

        about  to be noted with it. Raises Locked where another process is at the same step.
        """
        checkpoint_dir, began = self.checkpoint_dir(step_id), monotonic()
        with lock_directory(checkpoint_dir):
            if self.folder(step_id).exists() and not self.done(
                step_id
            ):  # such as a removal was killed at, once
                remove_folder(self.folder(step_id))
            with new_folder(self.folder(step_id)) as folder, _logged(checkpoint_dir / LOG):
                yield checkpoint_dir, folder
                shutil.copyfile(checkpoint_dir / LOG, folder / LOG)
                versions = {
                    package: version(package) for package in ("deftx", "torch", "transformers")
                }
                finished = datetime.now(UTC).isoformat(timespec="seconds")
                record = {
                    "id": step_id,
                    **about,
                    "seconds": round(monotonic() - began, 3),
                    "versions": versions,
                    "finished": finished,
                    "sha256": {path.name: _sha256(path) for path in sorted(folder.glob("*.json"))},
                }
                (folder / RECORD).write_text(
                    json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8"
                )
            _emptied(checkpoint_dir)

    def tidy(self, step_ids: Iterable[str]) -> None:
        """Remove what finished steps left in their folders of work when they were killed just
        then."""
        for checkpoint_dir in map(self.checkpoint_dir, filter(self.done, step_ids)):
            if checkpoint_dir.is_dir():
                with suppress(Locked), lock_directory(checkpoint_dir):
                    _emptied(checkpoint_dir)


def check_sum(path: Path, expected: str | None) -> None:
    """Raise DeftxError where a file is damaged: its SHA-256 does not begin with what is `expected`.

    Steps that older versions made have no checksums (None): anything goes.
    """
    if expected is None or not path.is_file():
        return
    if not _sha256(path).startswith(expected):
        raise DeftxError(
            f"{path} is damaged (its checksum is not the one that was kept): {_remedy(path)}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(path: Path) -> str:
    what = path if path.parent.name == "data" else path.parent
    return f"remove {what}, and it is made anew"


def read_json(path: Path) -> Any:
    """What a file of a store holds. Raises DeftxError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeftxError(f"{path} is damaged ({error}): {_remedy(path)}") from None


def _emptied(checkpoint_dir: Path) -> None:
    for path in checkpoint_dir.iterdir():
        if path.is_dir():  # what a crash left of a file that was being written
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Within the block, what the trainings have to say is written to a file too."""
    log, handler = logging.getLogger("deftx"), logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
        handler.close()


def size(folder: Path) -> int:
    """The bytes that the files of a folder take, those with several names shared out among
    these."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size // path.stat().st_nlink for path in files)
