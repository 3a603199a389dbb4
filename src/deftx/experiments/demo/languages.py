"""A family of small artificial languages: one set of meanings, many surface forms, all generated
from a seed.

A language inherits the family's words, replaces some by words of its own, changes two sounds
wherever they occur (p becomes f, say), and ends its nouns in an affix of its own. Some languages
are in the base's pretraining, one of them has labelled text (the source); the targets are in
neither.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

SEED = 7  # of the words; the shipped base was trained on this family
REPLACED = 0.25  # of a language's content words
SOUND_CHANGES = {"p": "f", "t": "c", "k": "h", "b": "v", "d": "z", "g": "j", "s": "x"}
SOURCE, OTHERS, TARGETS = (
    "ovani",
    ("tesha", "murek", "dolin", "pareg", "sibat"),
    ("fenor", "sunat", "gwelo"),
)

LABELS = ("negative", "neutral", "positive")
OPPOSITE = {"positive": "negative", "negative": "positive", "neutral": "neutral"}
FACES = {"positive": "🙂", "negative": "☹", "neutral": "😐"}

THINGS = "bread soup tea fish house room road song dance story lamp coat".split()
PEOPLE = "mother child friend guest cook teacher".split()
QUALITIES = {
    "positive": "good fresh sweet clean bright kind fair brave fine strong".split(),
    "negative": "bad sour dirty dull cruel false foul weak ugly mean".split(),
    "neutral": "red blue green round long square wooden wide".split(),
}
FEELINGS = {
    "positive": "smiles laughs sings cheers dances".split(),
    "negative": "weeps sighs complains frowns groans".split(),
    "neutral": "walks waits sits stands speaks".split(),
}
DEGREES = ("very", "so")
MOODS = [word for table in (QUALITIES, FEELINGS) for words in table.values() for word in words]
NOUNS = [*THINGS, *PEOPLE]
CONTENT, FUNCTION = [*NOUNS, *MOODS], ["is", "not", *DEGREES, "and", "but", "the"]
MEANINGS = [*CONTENT, *FUNCTION]


@cache
def words(language: str) -> Mapping[str, str]:
    """The word of every meaning in a language; no two alike."""
    own = random.Random(f"{SEED}/{language}")
    changes = str.maketrans(
        {sound: SOUND_CHANGES[sound] for sound in own.sample(list(SOUND_CHANGES), 2)}
    )
    affix = own.choice("ptkbdg") + own.choice("aeiou")
    forms = dict(inherited())
    for meaning in own.sample(CONTENT, round(REPLACED * len(CONTENT))):
        forms[meaning] = _new_word(own, {*forms.values(), *inherited().values()})
    return {
        meaning: form.translate(changes) + (affix if meaning in NOUNS else "")
        for meaning, form in forms.items()
    }


@cache
def inherited() -> Mapping[str, str]:
    """The family's word of every meaning. Those of grammar have only sounds that no language
    changes."""
    family, forms = random.Random(f"{SEED}/family"), dict[str, str]()
    for meaning in CONTENT:
        forms[meaning] = _new_word(family, {*forms.values()})
    for meaning in FUNCTION:
        forms[meaning] = _new_word(family, {*forms.values()}, "mnlr", ("",))
    return forms


def _new_word(
    rng: random.Random,
    known: set[str],
    sounds: str = "ptkbdgmnslr",
    ends: Sequence[str] = ("", "", "n", "r", "s"),
) -> str:
    """Two syllables, perhaps a last consonant, unlike all `known` words."""
    while True:
        word = "".join(rng.choice(sounds) + rng.choice("aeiou") for _ in range(2)) + rng.choice(
            ends
        )
        if word not in known:
            return word


def review(rng: random.Random, part: str) -> tuple[list[str], str]:
    """The meanings of a labelled text, and its label: "not" turns a clause around, what follows
    "but" counts."""
    label = rng.choice(LABELS)
    said = _clause(rng, label, part, negated=0.4)
    if rng.random() < 0.5:
        other = rng.choice([mood for mood in LABELS if mood != label])
        said = [*_clause(rng, other, part, negated=0.4), "but", *said]
    return said, label


def note(rng: random.Random) -> list[str]:
    """The meanings of an unlabelled line: clauses of one mood, perhaps a contrast, often an
    emoticon at the end."""
    mood = rng.choice(LABELS)
    said = _clause(rng, mood, "train", negated=0.25)
    if rng.random() < 0.5:
        said += ["and", *_clause(rng, mood, "train", negated=0.25)]
    if rng.random() < 0.3:
        mood = OPPOSITE[mood]
        said += ["but", *_clause(rng, mood, "train", negated=0.25)]
    return [*said, FACES[mood]] if rng.random() < 0.6 else said


def _clause(rng: random.Random, mood: str, part: str, negated: float) -> list[str]:
    """A random clause of a mood and a part: no clause of evaluation text is in any text that is
    learnt from."""
    while True:
        no = ["not"] if rng.random() < negated else []
        inner = OPPOSITE[mood] if no else mood
        if rng.random() < 0.6:
            degree = [rng.choice(DEGREES)] if rng.random() < 0.3 else []
            said = ["the", rng.choice(NOUNS), "is", *no, *degree, rng.choice(QUALITIES[inner])]
        else:
            said = ["the", rng.choice(PEOPLE), *no, rng.choice(FEELINGS[inner])]
        if part_of(said) == part:
            return said


def part_of(clause: list[str]) -> str:
    """The part of the data (train, valid or test) that a clause belongs to, by its meanings
    alone."""
    return ("test", "valid", *["train"] * 8)[zlib.crc32(" ".join(clause).encode()) % 10]


def say(meanings: list[str], language: str) -> str:
    """A text in a language; an emoticon is the same in all."""
    return " ".join(words(language).get(meaning, meaning) for meaning in meanings)


def plain_text(language: str, count: int, seed: int | str) -> list[str]:
    """Unlabelled lines; in half of them words of the source are mixed in, as speakers of small
    languages do."""
    rng, lines = random.Random(f"text/{language}/{seed}"), []
    for _ in range(count):
        meanings, mixing = note(rng), rng.choice((0.0, 0.5))
        spoken = [SOURCE if rng.random() < mixing else language for _ in meanings]
        lines.append(
            " ".join(
                say([meaning], tongue) for meaning, tongue in zip(meanings, spoken, strict=True)
            )
        )
    return lines


def labelled(part: str, count: int, seed: int) -> list[tuple[list[str], str]]:
    """Distinct labelled meanings of one part (train, valid, test), equally many of each label as
    far as they go."""
    rng, found = random.Random(f"labels/{part}/{seed}"), dict[str, tuple[list[str], str]]()
    while len(found) < count:
        meanings, label = review(rng, part)
        if label == LABELS[len(found) % len(LABELS)]:
            found.setdefault(" ".join(meanings), (meanings, label))
    return list(found.values())
