"""Generation: a text for a text, such as its translation or summary, by a decoder or an
encoder-decoder.

The model reads the text, followed by a line break if it is a decoder; it writes the other text and
the end-of-text token. The loss is that of what it writes alone. Answers are decoded greedily.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from deftx.data.cells import as_name
from deftx.data.examples import Columns, Examples
from deftx.data.reading import read_pairs
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.objectives.seq2seq_lm import written_loss
from deftx.tasks.base import Task
from deftx.tasks.encoding import Encoded, batches, padding, tokenised

PROMPT_END = "\n"  # between what a decoder reads and what it writes
CHRF_ORDER = 6  # the longest n-grams
CHRF_BETA = 2  # recall counts so much more than precision


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

    Attributes:
        tokenizer: Turns tokens into text.
        max_new_tokens: The longest answer.
    """

    tokenizer: Any
    max_new_tokens: int


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Texts, and what is to be written for each."""
    read_label = as_name if labelled else None
    return read_pairs(source, columns, read_label)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise what is read and what is written, each truncated to half of `length` tokens.

    Targets are the tokens to write, with the end-of-text token at their end.

    Raises:
        DeftxError: The tokenizer has no end-of-text token, or the length is less than 2.
    """
    end = tokenizer.eos_token_id
    max_written = length // 2
    if end is None or max_written < 1:
        raise DeftxError(
            f"generation needs a token that ends texts, and a length of 2 or more, not {length}"
        )
    max_read = length - max_written

    # An encoder's tokenizer marks the end of a text itself; for a decoder it is PROMPT_END
    marks_end = tokenizer("a")["input_ids"][-1] == end
    prompt_end = "" if marks_end else PROMPT_END
    prompts = Examples([text + prompt_end for text in examples.texts], labels=examples.labels)
    _, inputs = tokenised(prompts, tokenizer, max_read, labelled)
    if prompt_end:
        _restore_prompt_end(inputs, tokenizer, prompt_end, max_read)

    targets = []
    if labelled and examples.labels:
        ids = tokenizer(list(examples.labels), add_special_tokens=False)["input_ids"]
        targets = [[*row[: max_written - 1], end] for row in ids]
    decoding = Decoding(tokenizer, max_written)
    return Encoded(examples, inputs, targets, names, padding(tokenizer), decoding=decoding)


def _restore_prompt_end(
    inputs: list[dict[str, Any]], tokenizer: Any, prompt_end: str, max_read: int
) -> None:
    """Put the end of the prompt at the end of texts that were truncated, in place."""
    end_ids = tokenizer(prompt_end, add_special_tokens=False)["input_ids"]
    if len(end_ids) >= max_read:
        return
    for row in inputs:
        if len(row["input_ids"]) == max_read:
            row["input_ids"] = [*row["input_ids"][: max_read - len(end_ids)], *end_ids]


def collate_ragged(targets: list[list[int]], batch: Batch) -> Tensor:
    """Targets of any lengths [batch, longest], filled with IGNORED."""
    rows = [torch.tensor(row) for row in targets]
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def loss(model: Any, batch: Batch) -> Tensor:
    """The mean cross-entropy of the tokens to write, each given what is read and those before
    it."""
    if model.config.is_encoder_decoder:
        return written_loss(model, batch)

    # A decoder's input is what is read and what is written, one after the other
    read_ids = batch["input_ids"]
    written_ids = batch["labels"]
    ids = torch.cat([read_ids, written_ids.clamp_min(0)], dim=1)
    is_token = torch.cat([batch["attention_mask"].bool(), written_ids != IGNORED], dim=1)
    targets = torch.cat([torch.full_like(read_ids, IGNORED), written_ids], dim=1)

    # Move all padding to the right, so that what is written follows what is read
    order = (~is_token).int().argsort(dim=1, stable=True)
    ids = ids.gather(1, order)
    is_token = is_token.gather(1, order)
    targets = targets.gather(1, order)

    outputs = model(input_ids=ids, attention_mask=is_token.long(), use_cache=False)
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    next_ids = targets[:, 1:].flatten()
    total = cross_entropy(logits, next_ids, ignore_index=IGNORED, reduction="sum")
    return total / max(labelled_tokens(written_ids), 1)


def answer(model: Any, encoded: Encoded, batch_size: int) -> list[tuple[str]]:
    """What the model writes for every example, with the most probable token at each step."""
    decoding: Decoding = encoded.decoding
    tokenizer = decoding.tokenizer
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    text_of_row: dict[int, str] = {}
    for rows, batch in batches(model, encoded, batch_size):
        ids = batch["input_ids"]
        mask = batch["attention_mask"]
        prompt_length = 0
        if not model.config.is_encoder_decoder:
            # Padding to the left, since a decoder continues from the end; what it returns begins
            # with the prompt
            order = mask.argsort(dim=1, stable=True)
            ids = ids.gather(1, order)
            mask = mask.gather(1, order)
            prompt_length = ids.shape[1]
        generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        written = generated[:, prompt_length:].tolist()
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            text_of_row[row] = text.strip()
    return [(text_of_row[row],) for row in range(len(encoded.inputs))]


def exact_match(true: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of answers that equal the true ones, white space at their ends aside."""
    right = 0
    for true_text, predicted_text in zip(true, predicted, strict=True):
        right += true_text.strip() == predicted_text.strip()
    return right / len(true)


def chrf(true: Sequence[str], predicted: Sequence[str]) -> float:
    """chrF (Popović 2015), 0 to 1: F2 of the mean precision and mean recall of character n-grams.

    Orders are 1 to 6; white space is left out; counts are of all texts together. Orders of which
    either side has no n-grams are left out.
    """
    precisions = []
    recalls = []
    for order in range(1, CHRF_ORDER + 1):
        right = 0
        true_total = 0
        predicted_total = 0
        for true_text, predicted_text in zip(true, predicted, strict=True):
            true_grams = _character_ngrams(true_text, order)
            predicted_grams = _character_ngrams(predicted_text, order)
            right += (true_grams & predicted_grams).total()
            true_total += true_grams.total()
            predicted_total += predicted_grams.total()
        if true_total and predicted_total:
            precisions.append(right / predicted_total)
            recalls.append(right / true_total)
    precision = sum(precisions) / max(len(precisions), 1)
    recall = sum(recalls) / max(len(recalls), 1)
    if not precision + recall:
        return 0.0
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _character_ngrams(text: str, order: int) -> Counter[str]:
    packed = "".join(text.split())
    return Counter(packed[i : i + order] for i in range(len(packed) - order + 1))


GENERATION = Task(
    auto_model_class=None,
    columns=Columns("text", None, "target"),
    read=read,
    label_names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    output_fields=("text",),
    metrics={"chrf": chrf, "exact_match": exact_match},
    collate_targets=collate_ragged,
    loss_denominator=labelled_tokens,
    token_fields=("input_ids", "labels"),
    required_columns={},
)
