"""Did it help? What can be said of vectors with and without labelled data of their language, and
what to try.

Without labels: how the loss on held-out text went, how much of the text the base's tokenizer does
not know, how much of the language's vector lies at the same places as the task's, and how often a
model with the language's vector answers otherwise than one without. With labels: the scores with
and without it, and an interval of the difference.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from deftx.config import metric_name
from deftx.core.apply import apply_temporarily
from deftx.core.merge import resolve_terms
from deftx.core.vector import SparseVector, overlap
from deftx.data.examples import Examples
from deftx.data.unknown_text import unknown_share
from deftx.models.compose import load_base_with_head, task_type, trained_length, uses_text_pairs
from deftx.models.loading import Base, place
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import LOWER_IS_BETTER, predict

T = TypeVar("T")

LITTLE_GAIN = 0.01  # of the loss before training: a vector that gained less did nothing
KEPT = 0.5  # of what phase 1 gained: phase 2 lost where it kept less
ONE_LABEL = 0.98  # share of a label among the answers from which on it is taken for everything
MUCH_UNKNOWN = 0.05  # share of the text
FEWEST_ANSWERS = 20  # of fewer, all may well be one label
SAMPLE = 300  # texts that are answered, and lines whose unknown share is counted


@dataclass(frozen=True)
class Course:
    """How a vector did on held-out data before its training, after phase 1 and after phase 2; None:
    not recorded."""

    metric: str
    start: float | None
    phase1: float | None
    phase2: float | None

    @property
    def sign(self) -> int:
        """1 where larger values are better, else -1."""
        return -1 if self.metric == "loss" or self.metric in LOWER_IS_BETTER else 1

    def gain(self, end: float | None) -> float | None:
        """How much better a value is than the start."""
        return None if end is None or self.start is None else self.sign * (end - self.start)

    @property
    def end(self) -> float | None:
        """The value of the finished vector."""
        return self.phase1 if self.phase2 is None else self.phase2

    def __str__(self) -> str:
        end = "after the training" if self.phase1 is None else "after phase 2"
        stages = {"before": self.start, "after phase 1": self.phase1, end: self.phase2}
        values = [f"{value:.4f} {stage}" for stage, value in stages.items() if value is not None]
        return f"held-out {metric_name(self.metric)} {', '.join(values)}"


def course_of(vector: SparseVector) -> Course | None:
    """How a vector's training went; None where it has no log, as one that was converted."""
    log = vector.provenance.log
    first, second = log.get("phase1"), log.get("phase2")
    opening = first or second  # some methods have no phase 1
    if opening is None:
        return None
    metric = vector.provenance.training.metric or "loss"
    after_phase1 = None if first is None else first.best_score
    after_phase2 = None if second is None else second.best_score
    return Course(metric, opening.start_score, after_phase1, after_phase2)


def advice_on(course: Course | None) -> list[str]:
    """What is wrong with how a training went, and what to try."""
    if course is None:
        return []
    first, last = course.gain(course.phase1), course.gain(course.end)
    if last is None:
        return []
    assert course.start is not None
    more = "train longer (training.max_steps), or with a higher training.learning_rate"
    if last < 0:
        return [
            "it is worse than before the training: lower training.learning_rate, or"
            f" {more.partition(',')[0]}"
        ]
    if last <= LITTLE_GAIN * abs(course.start):
        return [f"the vector did next to nothing: {more}"]
    if course.phase2 is not None and first is not None and last < KEPT * first:
        return [
            f"phase 2 kept only {last / first:.0%} of what phase 1 gained: give a larger k, or"
            f" {more}"
        ]
    return []


def advice_on_answers(
    answers: Sequence[object], expected: Sequence[object] | None = None
) -> list[str]:
    """What to try where a task gives one label for everything.

    Args:
        answers: The labels given; of a tagged text, the list of its tags.
        expected: The true labels, where they are known: they may be all one label too.
    """
    labels = _single_labels(answers)
    if len(labels) < FEWEST_ANSWERS:
        return []
    label, count = Counter(labels).most_common(1)[0]
    share = count / len(labels)
    if share < ONE_LABEL:
        return []
    if expected is not None:
        true_labels = _single_labels(expected)
        if true_labels.count(label) >= ONE_LABEL * len(true_labels):
            return []
    return [
        f"{label!r} is the answer in {share:.0%} of {len(labels):,} cases: train the task longer"
        " (training.epochs) or with another training.learning_rate; with a language vector, try"
        " half of it"
    ]


def _single_labels(answers: Sequence[object]) -> list[object]:
    """All labels, those of tagged texts one by one."""
    labels: list[object] = []
    for answer in answers:
        if isinstance(answer, list | tuple):
            labels += answer
        else:
            labels.append(answer)
    return labels


@dataclass(frozen=True)
class Answers:
    """What a model answers to texts of a language with its vector and without.

    texts      how many there were
    agreement  share of the texts that both answer alike
    labels, labels_without  how often each label is the answer
    """

    texts: int
    agreement: float
    labels: Mapping[str, int]
    labels_without: Mapping[str, int]

    def advice(self, trained_share: float) -> list[str]:
        """What is wrong with the answers, and what to try; `trained_share` is that of the commonest
        training label."""
        label, count = max(self.labels.items(), key=lambda item: item[1])
        if count >= ONE_LABEL * self.texts and trained_share < ONE_LABEL:
            before = self.labels_without.get(label, 0) / self.texts
            fix = "take half of the vector, or train the language for fewer steps"
            if before >= ONE_LABEL:
                fix = "look at the task first, is its score in the source language good?"
            return [f"the answer is {label!r} to {count / self.texts:.0%} of the texts: {fix}"]
        if self.agreement == 1:
            return ["the vector changes no answer: train the language longer, or give a larger k"]
        return []


def answers_by_language(
    base: Base,
    task: SparseVector,
    languages: Mapping[str, SparseVector],
    texts: Mapping[str, Sequence[str]],
    *,
    rule: str = "sum",
) -> dict[str, Answers]:
    """How the answers to texts of each language change with its vector, all on one loaded base.

    Nothing is said where a task names no labels, or reads more than single texts.
    """
    kind = task_type(task)
    if kind.label_names is None or uses_text_pairs(task) or any(kind.required_columns.values()):
        return {}
    tokenizer = load_tokenizer(base)
    model = load_base_with_head(
        base, task, list(languages.values()), tokenizer=tokenizer, ignore_base_mismatch=None
    )
    place(model)
    length = trained_length(model, tokenizer, task)
    found = {}
    for name, vector in languages.items():
        examples = Examples(sample_of(texts.get(name, ())))
        if not len(examples):
            continue
        with apply_temporarily(model, *resolve_terms(rule, [task], [vector])):
            answers = [str(row[0]) for row in predict(kind, model, tokenizer, examples, length)]
        with apply_temporarily(model, *resolve_terms(rule, [task], [])):
            without = [str(row[0]) for row in predict(kind, model, tokenizer, examples, length)]
        alike = sum(one == other for one, other in zip(answers, without, strict=True))
        found[name] = Answers(
            len(answers), alike / len(answers), Counter(answers), Counter(without)
        )
    return found


def sample_of(texts: Sequence[T], most: int = SAMPLE) -> list[T]:
    """At most so many of the texts (or of anything else), evenly spaced."""
    step = max(1, -(-len(texts) // most))
    return list(texts[::step])


@dataclass(frozen=True)
class Benefit:
    """All that is known of whether a language's vector helps.

    course   of its training; None: unknown
    unknown  share of its text that the base's tokenizer does not know; None: there is no text
    overlap  share of its places that are the task's too, of the smaller of the two vectors
    answers  to texts of the language; None where the task does not allow it, or there is no text
    """

    language: str
    course: Course | None
    unknown: float | None
    overlap: float
    answers: Answers | None
    trained_share: float

    def advice(self) -> Iterator[str]:
        """What is wrong, and what to try."""
        yield from advice_on(self.course)
        if self.unknown is not None and self.unknown >= MUCH_UNKNOWN:
            yield (
                f"the base's tokenizer does not know {self.unknown:.0%} of the text: try a"
                " base that knows its script"
            )
        if self.answers is not None:
            yield from self.answers.advice(self.trained_share)

    def facts(self) -> list[str]:
        """What is known, a sentence each."""
        said = [str(self.course)] if self.course else []
        if self.unknown is not None:
            said.append(f"{self.unknown:.1%} of the text is unknown to the tokenizer")
        said.append(f"{self.overlap:.0%} of its places are the task's too")
        if self.answers is not None:
            said.append(
                f"with it {1 - self.answers.agreement:.0%} of {self.answers.texts} texts are"
                " answered otherwise"
            )
        return said


def benefits(
    base: Base,
    task: SparseVector,
    languages: Mapping[str, SparseVector],
    texts: Mapping[str, Sequence[str]],
    to_answer: Mapping[str, Sequence[str]],
    train: Examples,
) -> list[Benefit]:
    """What can be said of languages without labelled data of them.

    texts      plain text by language, as far as there is some
    to_answer  texts by language to compare answers on
    train      what the task was learnt from
    """
    tokenizer = load_tokenizer(base)
    answers = answers_by_language(base, task, languages, to_answer)
    counts = Counter(map(str, train.labels or []))
    trained_share = max(counts.values()) / len(train) if counts else 1.0
    return [
        Benefit(
            name,
            course_of(vector),
            _unknown(texts.get(name), tokenizer),
            overlap(task, vector),
            answers.get(name),
            trained_share,
        )
        for name, vector in languages.items()
    ]


def _unknown(lines: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """The share of a text that a tokenizer does not know."""
    return unknown_share(sample_of(lines), tokenizer)[0] if lines else None
