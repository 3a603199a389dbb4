"""Texts that wait for the model: grouped by language, and answered by the one thread that has
it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deftx.data.examples import Examples, joined

A = TypeVar("A")  # the answer to one text
# (texts of one language, the language or None) -> their answers
Answer = Callable[[Examples, str | None], Sequence[A]]


class Busy(Exception):
    """More waits than may wait, or nothing more is taken."""


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[A]):
    """One example, when it came, and its answer to be."""

    example: Examples
    since: float = field(default_factory=time.monotonic)
    answer: Future[A] = field(default_factory=Future)


# what can be answered together: one language, with or without pairs, with or without parts
_Kind = tuple[str | None, bool, bool]


class Batches(Generic[A]):
    """Has texts answered, a batch of one language at a time, in a thread of its own.

    A batch is what waits when the last one has ended: nothing waits for company. Where one fails,
    its halves are tried.

    Args:
        answer: Answers texts of one language; called from that thread alone.
        most: How many texts are in a batch at most.
        waiting: How many texts may wait.
        patience: Seconds. Batches stay with the language of the last one as long as texts of it
            wait, since a switch costs time. A text that has waited for longer goes first: from then
            on only those that came before it, and their company in a batch, are answered before it.
    """

    def __init__(
        self, answer: Answer[A], *, most: int = 32, waiting: int = 1024, patience: float = 0.5
    ) -> None:
        self._answer = answer
        self._most = most
        self._room = waiting
        self._patience = patience
        self._queues: dict[_Kind, deque[_Waiting[A]]] = {}  # none of them empty
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="deftx-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        with self._changed:
            return self._count()

    @property
    def alive(self) -> bool:
        """Whether there is anybody to answer."""
        return self._thread.is_alive()

    def submit(self, examples: Examples, languages: Sequence[str | None]) -> list[Future[A]]:
        """The answers to be, in order, of examples without labels, each in its own language.

        Raises Busy, and takes none of them, where there is no room for all.
        """
        new = [_Waiting[A](examples.at([row])) for row in range(len(examples))]
        has_pairs = examples.pairs is not None
        has_parts = examples.parts is not None
        with self._changed:
            if self._closing:
                raise Busy("the server is about to stop")
            if self._count() + len(new) > self._room:
                raise Busy(
                    f"{self._count()} texts wait already, and {self._room} may: try again later"
                )
            for waiting, language in zip(new, languages, strict=True):
                kind = (language, has_pairs, has_parts)
                self._queues.setdefault(kind, deque()).append(waiting)
            self._changed.notify()
        return [waiting.answer for waiting in new]

    def close(self) -> None:
        """Take no more, and return when all that wait have been answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _count(self) -> int:
        return sum(map(len, self._queues.values()))

    def _work(self) -> None:
        kind: _Kind | None = None
        while taken := self._take(kind):
            kind, batch = taken
            if not batch:  # nobody wants their answers any more
                continue
            self._answer_batch(batch, kind[0])

    def _answer_batch(self, batch: list[_Waiting[A]], language: str | None) -> None:
        """Answer a batch; where that fails, its halves, so that a text that cannot be answered, or
        more of them than memory takes at once, is no harm to those beside it."""
        try:
            answers = self._answer(joined([waiting.example for waiting in batch]), language)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            half = len(batch) // 2
            self._answer_batch(batch[:half], language)
            self._answer_batch(batch[half:], language)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer.set_result(answer)

    def _take(self, last: _Kind | None) -> tuple[_Kind, list[_Waiting[A]]] | None:
        """The next batch, when there is one, after one of the kind `last`; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queues or self._closing)
            if not self._queues:
                return None
            kind = self._next(last)
            queue = self._queues[kind]
            batch = [queue.popleft() for _ in range(min(self._most, len(queue)))]
            if not queue:
                del self._queues[kind]
        wanted = [waiting for waiting in batch if waiting.answer.set_running_or_notify_cancel()]
        return kind, wanted

    def _next(self, last: _Kind | None) -> _Kind:
        """The kind at hand, unless one has waited for too long; otherwise the one that has waited
        longest."""
        longest = min(self._queues, key=lambda kind: self._queues[kind][0].since)
        patient = time.monotonic() - self._queues[longest][0].since < self._patience
        return last if last in self._queues and patient else longest
