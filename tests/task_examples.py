"""Labelled examples of every kind of task, on the words of the tiny bases."""

import tiny

from deftx.data.examples import Examples

TEXTS = tiny.sentences(12, seed=3)
WORDS = [text.split() for text in TEXTS]
TAGS = [["FRONT" if word[-1] in "ei" else "BACK" for word in words] for words in WORDS]
ANSWERS = [[(text.index(words[1]), words[1])] for text, words in zip(TEXTS, WORDS, strict=True)]
OPTIONS = [words[: 2 + number % 2] for number, words in enumerate(WORDS)]
# Each word hangs on the one before it; its relation depends on its vowel
ARCS = [
    [(number, "nsubj" if tag == "FRONT" else "obj") for number, tag in enumerate(tags)]
    for tags in TAGS
]
EXAMPLES = {
    "classification": Examples(TEXTS, TEXTS[::-1], [tags[0] for tags in TAGS]),
    "tagging": Examples(TEXTS, labels=TAGS, parts=WORDS),
    "ner": Examples(
        TEXTS, labels=[["B-X", "I-X", *["O"] * (len(words) - 2)] for words in WORDS], parts=WORDS
    ),
    "parsing": Examples(TEXTS, labels=ARCS, parts=WORDS),
    "question-answering": Examples([words[0] for words in WORDS], TEXTS, ANSWERS),
    "multiple-choice": Examples(TEXTS, labels=[number % 2 for number in range(12)], parts=OPTIONS),
    "regression": Examples(TEXTS, labels=[len(words) / 10 for words in WORDS]),
    "generation": Examples(TEXTS, labels=[" ".join(words[::-1]) for words in WORDS]),
}
