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
    """How a vector's training went on held-out data.

    Attributes:
        metric: The metric of the values.
        start: The value before the training; None: not recorded.
        phase1: The value after phase 1; None: not recorded.
        phase2: The value after phase 2; None: not recorded.
    """

    metric: str
    start: float | None
    phase1: float | None
    phase2: float | None

    @property
    def sign(self) -> int:
        """1 where larger values are better, else -1."""
        if self.metric == "loss" or self.metric in LOWER_IS_BETTER:
            return -1
        return 1

    def gain(self, end: float | None) -> float | None:
        """How much better a value is than the start; None where one of them is not recorded."""
        if end is None or self.start is None:
            return None
        return self.sign * (end - self.start)

    @property
    def end(self) -> float | None:
        """The value of the finished vector."""
        if self.phase2 is None:
            return self.phase1
        return self.phase2

    def __str__(self) -> str:
        end = "after the training" if self.phase1 is None else "after phase 2"
        stages = {"before": self.start, "after phase 1": self.phase1, end: self.phase2}
        values = []
        for stage, value in stages.items():
            if value is not None:
                values.append(f"{value:.4f} {stage}")
        return f"held-out {metric_name(self.metric)} {', '.join(values)}"


def course_of(vector: SparseVector) -> Course | None:
    """How a vector's training went; None where it has no log, as one that was converted."""
    log = vector.provenance.log
    phase1 = log.get("phase1")
    phase2 = log.get("phase2")
    first_phase = phase1 or phase2  # some methods have no phase 1
    if first_phase is None:
        return None
    metric = vector.provenance.training.metric or "loss"
    after_phase1 = None if phase1 is None else phase1.best_score
    after_phase2 = None if phase2 is None else phase2.best_score
    return Course(metric, first_phase.start_score, after_phase1, after_phase2)


def advice_on(course: Course | None) -> list[str]:
    """What is wrong with how a training went, and what to try."""
    if course is None:
        return []
    gain = course.gain(course.end)
    if gain is None:
        return []
    assert course.start is not None

    longer = "train longer (training.max_steps)"
    more = f"{longer}, or with a higher training.learning_rate"
    if gain < 0:
        fix = f"lower training.learning_rate, or {longer}"
        return [f"it is worse than before the training: {fix}"]
    if gain <= LITTLE_GAIN * abs(course.start):
        return [f"the vector did next to nothing: {more}"]

    gain_of_phase1 = course.gain(course.phase1)
    if course.phase2 is None or gain_of_phase1 is None:
        return []
    if gain < KEPT * gain_of_phase1:
        kept = f"phase 2 kept only {gain / gain_of_phase1:.0%} of what phase 1 gained"
        return [f"{kept}: give a larger k, or {more}"]
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

    # The most frequent answer
    counts = Counter(labels)
    label, count = counts.most_common(1)[0]
    share = count / len(labels)
    if share < ONE_LABEL:
        return []

    # It may be right
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

    Attributes:
        texts: How many texts there were.
        agreement: Share of the texts that both answer alike.
        labels: How often each label is the answer with the vector.
        labels_without: How often each label is the answer without it.
    """

    texts: int
    agreement: float
    labels: Mapping[str, int]
    labels_without: Mapping[str, int]

    def advice(self, trained_share: float) -> list[str]:
        """What is wrong with the answers, and what to try.

        Args:
            trained_share: The share of the most frequent label among the training data.
        """
        label, count = max(self.labels.items(), key=lambda item: item[1])
        is_one_label = count >= ONE_LABEL * self.texts
        if is_one_label and trained_share < ONE_LABEL:
            fix = "take half of the vector, or train the language for fewer steps"
            share_without = self.labels_without.get(label, 0) / self.texts
            if share_without >= ONE_LABEL:
                fix = "look at the task first, is its score in the source language good?"
            share = count / self.texts
            return [f"the answer is {label!r} to {share:.0%} of the texts: {fix}"]
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
    needs_more = uses_text_pairs(task) or any(kind.required_columns.values())
    if kind.label_names is None or needs_more:
        return {}

    tokenizer = load_tokenizer(base)
    model = load_base_with_head(
        base, task, list(languages.values()), tokenizer=tokenizer, ignore_base_mismatch=None
    )
    place(model)
    length = trained_length(model, tokenizer, task)

    def labels_of(examples: Examples, vectors: list[SparseVector]) -> list[str]:
        """The labels that the task gives to examples on top of language vectors."""
        terms = resolve_terms(rule, [task], vectors)
        with apply_temporarily(model, *terms):
            rows = predict(kind, model, tokenizer, examples, length)
        return [str(row[0]) for row in rows]

    answers = {}
    for name, vector in languages.items():
        sample = sample_of(texts.get(name, ()))
        if not sample:
            continue
        examples = Examples(sample)
        labels = labels_of(examples, [vector])
        labels_without = labels_of(examples, [])
        pairs = zip(labels, labels_without, strict=True)
        alike = sum(with_vector == without for with_vector, without in pairs)
        answers[name] = Answers(
            texts=len(labels),
            agreement=alike / len(labels),
            labels=Counter(labels),
            labels_without=Counter(labels_without),
        )
    return answers


def sample_of(texts: Sequence[T], most: int = SAMPLE) -> list[T]:
    """At most so many of the texts (or of anything else), evenly spaced."""
    step = max(1, -(-len(texts) // most))
    return list(texts[::step])


@dataclass(frozen=True)
class Benefit:
    """All that is known of whether a language's vector helps.

    Attributes:
        language: The language.
        course: How its training went; None: unknown.
        unknown: Share of its text that the base's tokenizer does not know; None: there is no text.
        overlap: Share of its places that are the task's too, of the smaller of the two vectors.
        answers: To texts of the language; None where the task does not allow it, or there is no
            text.
        trained_share: The share of the most frequent label among the task's training data.
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
            fix = "try a base that knows its script"
            yield f"the base's tokenizer does not know {self.unknown:.0%} of the text: {fix}"
        if self.answers is not None:
            yield from self.answers.advice(self.trained_share)

    def facts(self) -> list[str]:
        """What is known, a sentence each."""
        facts = []
        if self.course:
            facts.append(str(self.course))
        if self.unknown is not None:
            facts.append(f"{self.unknown:.1%} of the text is unknown to the tokenizer")
        facts.append(f"{self.overlap:.0%} of its places are the task's too")
        if self.answers is not None:
            changed = 1 - self.answers.agreement
            texts = self.answers.texts
            facts.append(f"with it {changed:.0%} of {texts} texts are answered otherwise")
        return facts


def benefits(
    base: Base,
    task: SparseVector,
    languages: Mapping[str, SparseVector],
    texts: Mapping[str, Sequence[str]],
    to_answer: Mapping[str, Sequence[str]],
    train: Examples,
) -> list[Benefit]:
    """What can be said of languages without labelled data of them.

    Args:
        base: Folder or hub id of the base.
        task: The task vector.
        languages: Language -> its vector.
        texts: Language -> plain text, as far as there is some.
        to_answer: Language -> texts to compare answers on.
        train: What the task was learnt from.
    """
    tokenizer = load_tokenizer(base)
    answers = answers_by_language(base, task, languages, to_answer)

    # The share of the most frequent training label
    counts = Counter(map(str, train.labels or []))
    trained_share = 1.0
    if counts:
        trained_share = max(counts.values()) / len(train)

    results = []
    for name, vector in languages.items():
        benefit = Benefit(
            language=name,
            course=course_of(vector),
            unknown=_unknown(texts.get(name), tokenizer),
            overlap=overlap(task, vector),
            answers=answers.get(name),
            trained_share=trained_share,
        )
        results.append(benefit)
    return results


def _unknown(lines: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """The share of a text that a tokenizer does not know; None where there is no text."""
    if not lines:
        return None
    share, *_ = unknown_share(sample_of(lines), tokenizer)
    return share
