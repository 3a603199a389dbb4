"""Bases with more pieces: those that a language's text is short of, for a script or words that a
base's tokenizer splits or does not know.

    learn_pieces        the pieces that shorten a text most, each with the parts it is made of
    extended_tokenizer  the tokenizer with them; its own pieces keep their ids and scores
    enlarge             a model with a row for each, which starts as the mean of its parts' rows
    extend_base         all three: an ordinary model folder, which is a base like any other
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from deftx.data.examples import check_read
from deftx.errors import DeftxError
from deftx.models.loading import Base, load_checked, load_pretrained
from deftx.models.saving import save_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.registry import language_of

MOST_PIECES = 50_000
LONGEST_PIECE = 16  # in parts
SMALLEST_COUNT = 2  # a piece that is seen once tells nothing
CANDIDATES = 2  # merges that are learnt for each piece that is wanted; the best are kept
FIRST_SYMBOL = 0xF0000  # parts are written as private characters while merges are learnt


@dataclass(frozen=True)
class NewPiece:
    """A piece that a tokenizer lacks.

    Attributes:
        text: As the tokenizer writes it, the mark of a word's start included.
        parts: The ids that it is split into today; none for a character that is unknown.
        count: How often it was used in the text.
    """

    text: str
    parts: tuple[int, ...]
    count: int


# --- pieces ---


def learn_pieces(
    text: Sequence[str], tokenizer: PreTrainedTokenizerBase, pieces: int
) -> list[NewPiece]:
    """The pieces that save the most tokens of a text, the best first.

    The parts are the tokenizer's own pieces, and the characters that it does not know. Byte-pair
    merges of them are learnt (Sennrich et al. 2016), twice as many as are wanted, and those are
    kept that save the most tokens where the text is split with them. Unknown characters come before
    merges, since a text with them says nothing.

    Args:
        text: Lines of plain text, of those that a vector is to be learnt from.
        tokenizer: The base's.
        pieces: How many pieces at most; the text may give fewer.

    Raises:
        DeftxError: The tokenizer cannot be extended, or `pieces` is out of range.
    """
    check_read(text, "read_text")
    if not 1 <= pieces <= MOST_PIECES:
        raise DeftxError(f"pieces = {pieces}; give 1 to {MOST_PIECES:,}")
    backend = _backend(tokenizer)
    known = backend.get_vocab(with_added_tokens=True)

    # Words as sequences of parts
    parts_of: dict[str, list[tuple[str, int | None]]] = {}
    counts = _word_counts(text, backend)
    for word in counts:
        parts_of[word] = _parts(word, backend)
    unknown: Counter[str] = Counter()
    id_of: dict[str, int | None] = {}
    for word, parts in parts_of.items():
        for part, part_id in parts:
            id_of[part] = part_id
            if part_id is None:
                unknown[part] += counts[word]

    # Unknown characters
    new_pieces: list[NewPiece] = []
    for character, count in sorted(unknown.items(), key=_most_first):
        if count >= SMALLEST_COUNT:
            new_pieces.append(NewPiece(character, (), count))

    # Merges, by the tokens that they save
    uses = _merged_uses(parts_of, counts, pieces)
    saving = {merged: count * (len(merged) - 1) for merged, count in uses.items()}
    for merged, _ in sorted(saving.items(), key=_most_first):
        piece = "".join(merged)
        part_ids = [id_of[part] for part in merged]
        known_parts = tuple(part_id for part_id in part_ids if part_id is not None)
        if piece not in known and uses[merged] >= SMALLEST_COUNT:
            new_pieces.append(NewPiece(piece, known_parts, uses[merged]))
    once = {
        piece.text: piece for piece in reversed(new_pieces)
    }  # two ways to split a piece: the better
    return list(reversed(once.values()))[:pieces]


def _most_first(item: tuple[Any, int]) -> tuple[int, Any]:
    key, number = item
    return -number, key


def _word_counts(text: Sequence[str], backend: Tokenizer) -> Counter[str]:
    """How often each word occurs, as the tokenizer normalizes and marks it."""
    counts: Counter[str] = Counter()
    for line in text:
        normal = line if backend.normalizer is None else backend.normalizer.normalize_str(line)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return counts


def _parts(word: str, backend: Tokenizer) -> list[tuple[str, int | None]]:
    """A word's pieces with their ids; a run of unknown characters is one part a character."""
    parts: list[tuple[str, int | None]] = []
    for token in backend.model.tokenize(word):
        if backend.token_to_id(token.value) == token.id:
            parts.append((token.value, token.id))
        else:  # the unknown token, whose value is the text that it stands for
            parts.extend((character, None) for character in token.value)
    return parts


def _merged_uses(
    parts_of: Mapping[str, Sequence[tuple[str, int | None]]], counts: Counter[str], pieces: int
) -> Counter[tuple[str, ...]]:
    """How often each merge of parts is used where words are split with the merges learnt."""
    # Parts as single characters
    alphabet = sorted({part for parts in parts_of.values() for part, _ in parts})
    symbol_of = {part: chr(FIRST_SYMBOL + number) for number, part in enumerate(alphabet)}
    part_of = {symbol: part for part, symbol in symbol_of.items()}
    written = {}
    for word, parts in parts_of.items():
        written[word] = "".join(symbol_of[part] for part, _ in parts)

    # Merges of them
    merger = Tokenizer(models.BPE())
    merger.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + CANDIDATES * pieces,
        min_frequency=SMALLEST_COUNT,
        max_token_length=LONGEST_PIECE,
        show_progress=False,
    )
    words = (" ".join([written[word]] * count) for word, count in sorted(counts.items()))
    merger.train_from_iterator(words, trainer)

    # What the words are split into
    uses: Counter[tuple[str, ...]] = Counter()
    for word, count in counts.items():
        for token in merger.encode(written[word]).tokens:
            if len(token) > 1:
                uses[tuple(part_of[symbol] for symbol in token)] += count
    return uses


# --- the tokenizer ---


def extended_tokenizer(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[NewPiece]
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with more pieces, in the order given, after all that it has.

    They enter the Unigram model itself, not the list of added tokens: added tokens are cut out of a
    text before it is split into words, so that one within a word would begin a word after it.
    No piece scores below the lowest that there is, on which the score of unknown characters
    depends: a text in which no new piece occurs is split as before.

    Raises:
        DeftxError: The tokenizer cannot be extended, or has one of the pieces.
    """
    backend = _backend(tokenizer)
    known = backend.get_vocab(with_added_tokens=True)
    texts = [piece.text for piece in pieces]
    for number, text in enumerate(texts):
        if text in known or text in texts[:number]:
            raise DeftxError(f"the tokenizer already has the piece {text!r:.40}: leave it out")

    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    scores = dict(vocabulary)
    lowest = min(scores.values())
    total = sum(piece.count for piece in pieces)
    text_of = {token_id: text for text, token_id in known.items()}
    for piece in pieces:
        # As likely as it was used, or a little likelier than its parts together if that is more:
        # otherwise it would never be chosen
        as_parts = sum(scores[text_of[part]] for part in piece.parts)
        frequency = log(piece.count / total)
        score = max(frequency, lowest)
        if piece.parts:
            score = max(score, as_parts + 1e-3)
        vocabulary.append([piece.text, score])
    extended = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    copy = type(tokenizer)(tokenizer_object=extended, **tokenizer.init_kwargs)
    return copy


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's Unigram tokenizer. Raises DeftxError for another kind."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.Unigram):
        kind = "no fast one" if backend is None else type(backend.model).__name__
        what = f"the vocabulary of this tokenizer ({kind}) cannot be extended"
        raise DeftxError(f"{what}: give a base with a Unigram tokenizer, such as XLM-R")
    in_model = backend.get_vocab_size(with_added_tokens=False)
    if backend.get_vocab_size(with_added_tokens=True) != in_model:
        what = "the tokenizer has added tokens after its vocabulary, where new pieces would be"
        raise DeftxError(f"{what}: give a base without added tokens")
    return backend


# --- the model ---


@torch.no_grad()
def enlarge(model: PreTrainedModel, first: int, pieces: Sequence[NewPiece]) -> None:
    """Give a model a row for each new piece, the mean of the rows of its parts; of a piece without
    parts the mean of all rows (Hewitt 2021). Output embeddings and their bias likewise.

    Args:
        model: Its embeddings grow as far as they must; no other row changes.
        first: The id of the first piece.
        pieces: In the order of their ids.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    size = max(rows, first + len(pieces))
    model.resize_token_embeddings(size, mean_resizing=False)
    model.tie_weights()
    enlarged: Any = model
    changed: list[Tensor] = [enlarged.get_input_embeddings().weight]
    decoder = enlarged.get_output_embeddings()
    if decoder is not None:
        if decoder.weight is not changed[0]:
            changed.append(decoder.weight)
        if getattr(decoder, "bias", None) is not None:
            changed.append(decoder.bias)
    for tensor in changed:
        mean_of_all = tensor[:first].mean(dim=0)
        for number, piece in enumerate(pieces):
            row = mean_of_all
            if piece.parts:
                row = tensor[list(piece.parts)].mean(dim=0)
            tensor[first + number] = row


def extend_base(
    base: Base, text: Sequence[str], out: Base, *, pieces: int = 500, force: bool = False
) -> list[NewPiece]:
    """Save a base with more pieces, learnt from a language's text, as an ordinary model folder.

    The new folder is a base of its own: vectors are learnt on it and fit it alone. `base` stays as
    it is.

    Args:
        base: Folder or hub id of a language model with a Unigram tokenizer.
        text: Lines of the language's plain text; none that is held out to score on.
        out: Folder to write.
        pieces: How many pieces at most.
        force: Replace the model that is there.

    Returns:
        The new pieces, in the order of their ids.

    Raises:
        DeftxError: The base cannot be loaded or extended, has no language modelling head, or the
            text has no piece that it lacks.
    """
    tokenizer = load_tokenizer(base)
    new_pieces = learn_pieces(text, tokenizer, pieces)
    if not new_pieces:
        raise DeftxError("the text has no piece that the base lacks: use the base as it is")
    extended = extended_tokenizer(tokenizer, new_pieces)
    auto = language_of(load_pretrained(AutoConfig, base)).auto_model_class
    model, missing = load_checked(auto, base)
    if missing:
        what = f"{base} has no language modelling head ({missing[0]} is missing)"
        raise DeftxError(f"{what}: give a base that has one")
    enlarge(model, len(tokenizer), new_pieces)
    save_model(model, extended, out, force=force)
    return new_pieces
