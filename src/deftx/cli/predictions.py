"""How `deftx predict` writes: line by line while the model answers, so that nothing that is
finished gets lost."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from deftx.cli.output import cell
from deftx.data.conll import conllu_block, conllu_blocks, with_arcs
from deftx.data.examples import Examples
from deftx.messages import say
from deftx.tasks.base import Task
from deftx.tasks.tagging import in_words

Answer = dict[str, Any]


def with_input(
    task: Task, examples: Examples, chunks: Iterable[Sequence[Answer]]
) -> Iterator[list[Answer]]:
    """The answers, each after what was read for it: its text, its second text, its options."""
    columns: dict[str, Sequence[Any]] = {"input": examples.texts}
    if examples.pairs:
        columns["pair"] = examples.pairs
    reads_options = task.required_columns.get(
        "parts"
    )  # otherwise parts are the words of the text itself
    if examples.parts and reads_options:
        columns["options"] = examples.parts

    row = 0
    for chunk in chunks:
        extended = []
        for answer in chunk:
            read = {name: column[row] for name, column in columns.items()}
            extended.append({**read, **answer})
            row += 1
        yield extended


def conllu_for(task: Task, source: str, examples: Examples) -> list[str] | None:
    """What the arcs of a parser are written into: CoNLL-U, a sentence for each example. None: the
    task has no arcs.

    Args:
        task: The task.
        source: What was read. All of a CoNLL-U file is kept.
        examples: What was read of it.
    """
    if "arcs" not in task.output_fields:
        return None
    if source.lower().endswith(".conllu"):
        return conllu_blocks(Path(source))
    return [conllu_block(words) for words in in_words(examples).parts or []]


def write_answers(
    chunks: Iterable[Sequence[Answer]],
    total: int,
    out: Path | None,
    *,
    as_json: bool,
    conllu: Sequence[str] | None = None,
) -> None:
    """Write answers as they come: to `out`, or to standard output without one.

    Args:
        chunks: The answers, some at a time.
        total: How many there will be.
        out: The file. Until the last answer is there they are in `out`.part.
        as_json: Whether each line is JSON; otherwise they are TSV with a header.
        conllu: Sentences of CoNLL-U that get the answers' arcs, and are written instead of lines.
    """
    with _progress(total, out) as progress, _sink(out, total, progress) as file:
        for chunk in chunks:
            if not as_json and conllu is None and progress.done == 0:
                print("\t".join(chunk[0]), file=file)
            for row, answer in enumerate(chunk, progress.done):
                if conllu is None:
                    print(_line(answer, as_json=as_json), file=file)
                else:
                    file.write(with_arcs(conllu[row], answer["arcs"]))
            file.flush()
            progress.advance(len(chunk))


def _line(answer: Answer, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(answer, ensure_ascii=False)
    return "\t".join(cell(value) for value in answer.values())


class _Progress:
    """How many answers are written, and a bar that shows it."""

    def __init__(self, total: int, *, visible: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.done = 0
        self.bar = Progress(console=Console(stderr=True), disable=not visible)
        self.task = self.bar.add_task("predict", total=total)

    def advance(self, count: int) -> None:
        self.done += count
        self.bar.advance(self.task, count)


@contextmanager
def _progress(total: int, out: Path | None) -> Iterator[_Progress]:
    """A bar on standard error for long input, unless the answers appear on the same terminal."""
    from deftx.cli.actions import ANSWERED_AT_ONCE

    on_terminal = out is None and sys.stdout.isatty()
    progress = _Progress(total, visible=total > ANSWERED_AT_ONCE and not on_terminal)
    with progress.bar:
        yield progress


@contextmanager
def _sink(out: Path | None, total: int, progress: _Progress) -> Iterator[IO[str]]:
    """Standard output, or a file beside `out` that takes its name at the end of the block.

    When the block is stopped, or fails, the file stays, and a line says what it holds.
    """
    if out is None:
        yield sys.stdout
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(out)
    except BaseException:
        if progress.done:
            say(f"{progress.done:,} of {total:,} predictions are finished and kept in {part}")
        else:
            part.unlink(missing_ok=True)
        raise
