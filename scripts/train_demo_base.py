"""Train the tiny base of `deftx demo`: a word tokenizer and an XLM-R-shaped masked language model.

    python scripts/train_demo_base.py [OUT]

The model sees text of the source and of the other pretraining languages, never of a target. It
learns masked words, and from a line's first token the emoticon that was taken off the line's end:
like BERT's next-sentence objective, that gives the first token, which classifiers read, something
to say. The vocabulary holds the words of all languages of the family, as that of a large
multilingual model covers languages it hardly saw.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

from deftx.experiments.demo.languages import FACES, OTHERS, SOURCE, TARGETS, plain_text, words
from deftx.objectives.masked_lm import IGNORED, Masking, mask, masked_loss, pack

OUT = Path(__file__).parents[1] / "src/deftx/experiments/demo/base"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LINES, LENGTH, WIDTH, LAYERS = 15_000, 48, 64, 2
STEPS, WARMUP, BATCH, RATE, MASKED = 4000, 100, 32, 2e-3, 0.2


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    known = sorted(
        {word for language in (SOURCE, *OTHERS, *TARGETS) for word in words(language).values()}
    )
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *known, *FACES.values()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    named = dict(
        zip(
            ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True
        )
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="<s>", sep_token="</s>", model_max_length=64, **named
    )


def new_model(vocabulary: int) -> XLMRobertaForMaskedLM:
    """A random start. At this width BERT's 0.02 would leave attention asleep for thousands of
    steps."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        num_attention_heads=4,
        max_position_embeddings=66,
        type_vocab_size=1,
        initializer_range=0.1,
        **sizes,
        **no_dropout,
    )
    return XLMRobertaForMaskedLM(config)


def emoticon_batches(
    lines: list[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels) [BATCH, length] of lines of one length; the label of the first token is
    the emoticon."""
    faces, by_length = set(FACES.values()), dict[int, list[tuple[str, str]]]()
    for line in lines:
        *said, last = line.split()
        if last in faces:
            by_length.setdefault(len(said), []).append((" ".join(said), last))
    groups = []
    for pairs in by_length.values():
        ids = torch.tensor(tokenizer([said for said, _ in pairs])["input_ids"])
        labels = torch.full_like(ids, IGNORED)
        labels[:, 0] = torch.tensor(tokenizer.convert_tokens_to_ids([last for _, last in pairs]))
        groups.append((ids, labels))
    rng, sizes = random.Random(0), [len(ids) for ids, _ in groups]
    while True:
        ids, labels = rng.choices(groups, sizes)[0]
        some = torch.randint(len(ids), (BATCH,))
        yield ids[some], labels[some]


@torch.no_grad()
def draw_unseen(model: XLMRobertaForMaskedLM, seen: Tensor) -> None:
    """Give tokens that no text had, and that training only pushed away, embeddings as spread as
    those of the others."""
    embeddings, bias = model.get_input_embeddings().weight, model.lm_head.bias
    unseen = torch.ones(len(embeddings), dtype=torch.bool).index_fill(0, seen, False)
    mean, spread = embeddings[seen].mean(0), embeddings[seen].std(0)
    embeddings[unseen] = mean + spread * torch.randn(int(unseen.sum()), WIDTH)
    bias[unseen] = bias[seen].median()


def main(out: Path) -> None:
    """Generate the text, train, and save in half precision."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    texts = [plain_text(language, LINES, "pretraining") for language in (SOURCE, *OTHERS)]
    blocks = torch.cat([pack(lines, tokenizer, LENGTH) for lines in texts])
    emoticons = emoticon_batches([line for lines in texts for line in lines], tokenizer)
    model = new_model(len(tokenizer))
    print(f"{len(blocks):,} blocks, {model.num_parameters():,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1, 3 * (1 - step / STEPS))
    )
    special, everything, total = (
        torch.tensor(tokenizer.all_special_ids),
        torch.arange(len(tokenizer)),
        0.0,
    )
    for step in range(1, STEPS + 1):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        words_loss = masked_loss(
            model, *mask(batch, Masking(MASKED, special, tokenizer.mask_token_id, everything))
        )
        (words_loss + 0.5 * masked_loss(model, *next(emoticons))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += words_loss.item()
        if step % 250 == 0:
            print(f"step {step}: loss {total / 250:.3f}", flush=True)
            total = 0.0
    draw_unseen(model, torch.cat([blocks.unique(), special]).unique())
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
