"""Text that a tokenizer does not know: its pieces all become one, of which nothing can be learnt or
told."""

import warnings
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from deftx.errors import DeftxError

# Shares of the characters of a text that its tokenizer does not know.
WARNED_OF = 0.05
REFUSED_TO_LEARN = 0.5
REFUSED_TO_SCORE = 0.9

SEEN = 1000  # texts that are looked at
EXAMPLE = 20  # characters of an example
SCRIPT = (
    "is it in a script that the base knows? give another base, or write it in the base's script"
)


def check_known(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, refused_from: float | None
) -> None:
    """Warn where a tokenizer does not know much of the texts.

    Args:
        texts: What is to be read; of many, SEEN from all over are looked at.
        tokenizer: The base's.
        refused_from: The share of unknown characters from which on there is no sense in reading
            them; None: none.

    Raises:
        DeftxError: Where so much of the texts is unknown.
    """
    step = max(1, len(texts) // SEEN)
    share, example = unknown_share(texts[::step][:SEEN], tokenizer)
    what = f"{share:.0%} of the text is unknown to the base's tokenizer, such as {example}"
    if refused_from is not None and share >= refused_from:
        raise DeftxError(f"{what}: {SCRIPT}")
    if share >= WARNED_OF:
        warnings.warn(f"{what}: another base may know its script better", stacklevel=2)


def unknown_share(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[float, str]:
    """The share of the characters of texts, without spaces, that are unknown to a tokenizer, and an
    example of such.

    Tokenizers that know all bytes, and those that do not tell where their tokens stand, give 0.
    """
    unknown, edges = (
        tokenizer.unk_token_id,
        (tokenizer.eos_token_id, tokenizer.bos_token_id),
    )  # one for all in GPT-2
    if not lines or unknown is None or unknown in edges or not tokenizer.is_fast:
        return 0.0, ""
    found = tokenizer(
        list(lines), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    strange = [
        "".join(line[start:stop].split())
        for line, ids, places in zip(
            lines, found["input_ids"], found["offset_mapping"], strict=True
        )
        for token, (start, stop) in zip(ids, places, strict=True)
        if token == unknown
    ]
    size = sum(len("".join(line.split())) for line in lines)
    return sum(map(len, strange)) / max(size, 1), next(filter(None, strange), "")[:EXAMPLE]
