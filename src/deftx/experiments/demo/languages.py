"""A family of small artificial languages: one set of meanings, many surface forms, all generated
from a seed.

A language inherits the family's words, replaces some by words of its own, changes two sounds
wherever they occur (p becomes f, say), and ends its nouns in an affix of its own. Some languages
are in the base's pretraining, one of them has labelled text (the source); the targets are in
neither.
"""

import random
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import cache

SEED = 7  # of the words; the shipped base was trained on this family
REPLACED = 0.25  # share of a language's content words that are its own
SOUND_CHANGES = {"p": "f", "t": "c", "k": "h", "b": "v", "d": "z", "g": "j", "s": "x"}

SOURCE = "ovani"
OTHERS = ("tesha", "murek", "dolin", "pareg", "sibat")
TARGETS = ("fenor", "sunat", "gwelo")

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
NOUNS = [*THINGS, *PEOPLE]
CONTENT = list(NOUNS)
for _by_mood in (QUALITIES, FEELINGS):
    for _words in _by_mood.values():
        CONTENT += _words
FUNCTION = ["is", "not", *DEGREES, "and", "but", "the"]
MEANINGS = [*CONTENT, *FUNCTION]

PARTS = ("test", "valid", *["train"] * 8)  # a tenth each: see `part_of`


@cache
def words(language: str) -> Mapping[str, str]:
    """The word of every meaning in a language; no two are alike."""
    rng = random.Random(f"{SEED}/{language}")
    changed_sounds = rng.sample(list(SOUND_CHANGES), 2)
    sound_changes = str.maketrans({sound: SOUND_CHANGES[sound] for sound in changed_sounds})
    consonant = rng.choice("ptkbdg")
    affix = consonant + rng.choice("aeiou")

    # some content words are replaced, before sounds change
    forms = dict(inherited())
    family = set(forms.values())
    for meaning in rng.sample(CONTENT, round(REPLACED * len(CONTENT))):
        forms[meaning] = _new_word(rng, family.union(forms.values()))

    # sounds change everywhere, nouns get the affix
    spoken = {}
    for meaning, form in forms.items():
        spoken[meaning] = form.translate(sound_changes)
        if meaning in NOUNS:
            spoken[meaning] += affix
    return spoken


@cache
def inherited() -> Mapping[str, str]:
    """The family's word of every meaning. Function words have only sounds that no language
    changes."""
    rng = random.Random(f"{SEED}/family")
    forms: dict[str, str] = {}
    for meaning in CONTENT:
        forms[meaning] = _new_word(rng, set(forms.values()))
    for meaning in FUNCTION:
        forms[meaning] = _new_word(rng, set(forms.values()), consonants="mnlr", ends=("",))
    return forms


def _new_word(
    rng: random.Random,
    known: Collection[str],
    consonants: str = "ptkbdgmnslr",
    ends: Sequence[str] = ("", "", "n", "r", "s"),
) -> str:
    """Two syllables, perhaps a last consonant, unlike all `known` words."""
    while True:
        word = ""
        for _ in range(2):
            word += rng.choice(consonants)
            word += rng.choice("aeiou")
        word += rng.choice(ends)
        if word not in known:
            return word


def review(rng: random.Random, part: str) -> tuple[list[str], str]:
    """A labelled text: "not" turns a clause around, and what follows "but" counts.

    Args:
        rng: Where the text is drawn from.
        part: "train", "valid" or "test".

    Returns:
        The meanings of the text, and its label.
    """
    label = rng.choice(LABELS)
    meanings = _clause(rng, label, part, negated=0.4)
    if rng.random() < 0.5:
        other_moods = [mood for mood in LABELS if mood != label]
        contrast = _clause(rng, rng.choice(other_moods), part, negated=0.4)
        meanings = [*contrast, "but", *meanings]
    return meanings, label


def note(rng: random.Random) -> list[str]:
    """The meanings of an unlabelled line: clauses of one mood, perhaps a contrast, often an
    emoticon at the end."""
    mood = rng.choice(LABELS)
    meanings = _clause(rng, mood, "train", negated=0.25)
    if rng.random() < 0.5:
        meanings += ["and", *_clause(rng, mood, "train", negated=0.25)]
    if rng.random() < 0.3:
        mood = OPPOSITE[mood]
        meanings += ["but", *_clause(rng, mood, "train", negated=0.25)]
    if rng.random() < 0.6:
        meanings.append(FACES[mood])
    return meanings


def _clause(rng: random.Random, mood: str, part: str, negated: float) -> list[str]:
    """A random clause of a mood and of a part of the data.

    No clause of evaluation text is in any text that is trained on.

    Args:
        rng: Where the clause is drawn from.
        mood: What the clause as a whole says.
        part: "train", "valid" or "test".
        negated: Probability that it says so by "not" and the opposite mood.
    """
    while True:
        negation = []
        mood_of_word = mood
        if rng.random() < negated:
            negation = ["not"]
            mood_of_word = OPPOSITE[mood]
        if rng.random() < 0.6:
            degree = []
            if rng.random() < 0.3:
                degree = [rng.choice(DEGREES)]
            noun = rng.choice(NOUNS)
            quality = rng.choice(QUALITIES[mood_of_word])
            clause = ["the", noun, "is", *negation, *degree, quality]
        else:
            person = rng.choice(PEOPLE)
            feeling = rng.choice(FEELINGS[mood_of_word])
            clause = ["the", person, *negation, feeling]
        if part_of(clause) == part:
            return clause


def part_of(clause: Sequence[str]) -> str:
    """The part of the data (train, valid or test) that a clause belongs to, by its meanings
    alone."""
    checksum = zlib.crc32(" ".join(clause).encode())
    return PARTS[checksum % len(PARTS)]


def say(meanings: Sequence[str], language: str) -> str:
    """A text in a language; an emoticon is the same in all."""
    vocabulary = words(language)
    return " ".join(vocabulary.get(meaning, meaning) for meaning in meanings)


def plain_text(language: str, count: int, seed: int | str) -> list[str]:
    """Unlabelled lines; in half of them words of the source are mixed in, as speakers of small
    languages do."""
    rng = random.Random(f"text/{language}/{seed}")
    lines = []
    for _ in range(count):
        meanings = note(rng)
        share_of_source = rng.choice((0.0, 0.5))
        spoken = []
        for meaning in meanings:
            word_language = SOURCE if rng.random() < share_of_source else language
            spoken.append(say([meaning], word_language))
        lines.append(" ".join(spoken))
    return lines


def labelled(part: str, count: int, seed: int) -> list[tuple[list[str], str]]:
    """Distinct labelled texts of one part of the data, equally many of each label.

    Args:
        part: "train", "valid" or "test".
        count: How many; where it is no multiple of the labels, the first labels have one more.
        seed: Of the texts.

    Returns:
        For each text its meanings and its label; labels take turns.
    """
    rng = random.Random(f"labels/{part}/{seed}")
    examples: dict[str, tuple[list[str], str]] = {}
    while len(examples) < count:
        meanings, label = review(rng, part)
        next_label = LABELS[len(examples) % len(LABELS)]
        if label == next_label:
            examples.setdefault(" ".join(meanings), (meanings, label))
    return list(examples.values())
