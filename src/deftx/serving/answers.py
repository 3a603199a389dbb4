"""What `/predict` says of a text, by the kind of the task that is served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from deftx.data.examples import Examples
from deftx.models.switcher import Switcher
from deftx.tasks.base import by_name
from deftx.tasks.registry import TASKS
from deftx.tasks.tagging import in_words

Said = dict[str, Any]  # of one text, as its form has it


class Form(BaseModel):
    """What is said of one text."""

    language: str | None


class Label(Form):
    """A label, and how probable all are."""

    label: str
    probability: float = Field(description="Of `label`, 0 to 1.")
    probabilities: dict[str, float] = Field(description="Of every label; they sum to 1.")


class Tags(Form):
    """Words and their tags."""

    words: list[str]
    tags: list[str] = Field(description="One for each word.")


class Arcs(Form):
    """Words and their heads and relations."""

    words: list[str]
    arcs: list[tuple[int, str]] = Field(
        description="For each word the number of its head, from 1 (0: the root), and its relation."
    )


class Answer(Form):
    """The part of the second text that answers the question."""

    answer: str
    probability: float = Field(description="Of `answer`, 0 to 1.")


class Option(Form):
    """Which option answers the question."""

    label: int = Field(description="The number of the option, counted from 0.")
    probability: float = Field(description="Of the option, 0 to 1.")


class Value(Form):
    """A number."""

    value: float


class Text(Form):
    """The text that was written."""

    text: str


F = TypeVar("F", bound=Form)


class Predictions(BaseModel, Generic[F]):
    """What is said of the texts, in their order."""

    predictions: list[F]


@dataclass(frozen=True)
class Answers:
    """What a kind of task says: the form of an answer to a request, and what is said of each
    example."""

    form: type[BaseModel]
    say: Callable[[Switcher, Examples, Sequence[str | None]], list[Said]]


def by_parts(switcher: Switcher, examples: Examples, languages: Sequence[str | None]) -> list[Said]:
    """The parts of each answer, as the task names them."""
    return by_name(TASKS[switcher.kind], switcher.predict(examples, languages))


def labels(switcher: Switcher, examples: Examples, languages: Sequence[str | None]) -> list[Said]:
    """The most probable label of each, and the probabilities of all."""
    answers = []
    for row in switcher.probabilities(examples, languages).tolist():
        probabilities = dict(zip(switcher.labels, row, strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        answers.append(
            {"label": best, "probability": probabilities[best], "probabilities": probabilities}
        )
    return answers


def by_word(switcher: Switcher, examples: Examples, languages: Sequence[str | None]) -> list[Said]:
    """The words of each and their tags or arcs."""
    words_of_texts = in_words(examples).parts or []
    answers = by_parts(switcher, examples, languages)
    return [
        {"words": words, **answer} for words, answer in zip(words_of_texts, answers, strict=True)
    ]


ANSWERS: dict[str, Answers] = {
    "classification": Answers(Predictions[Label], labels),
    "tagging": Answers(Predictions[Tags], by_word),
    "ner": Answers(Predictions[Tags], by_word),
    "parsing": Answers(Predictions[Arcs], by_word),
    "question-answering": Answers(Predictions[Answer], by_parts),
    "multiple-choice": Answers(Predictions[Option], by_parts),
    "regression": Answers(Predictions[Value], by_parts),
    "generation": Answers(Predictions[Text], by_parts),
}
