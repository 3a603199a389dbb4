"""Train the tiny base of `deftx demo`: a word tokenizer and an XLM-R-shaped masked language model.

    python scripts/train_demo_base.py [OUT]

The model sees text of the source and of the other pretraining languages, never of a target. The vocabulary holds
the words of all languages of the family, as that of a large multilingual model covers languages it hardly saw.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

from deftx.experiments.demo.languages import FACES, OTHERS, SOURCE, TARGETS, plain_text, words
from deftx.tasks.masked_lm import mask, masked_loss, pack

OUT = Path(__file__).parents[1] / "src/deftx/experiments/demo/base"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LINES, LENGTH, WIDTH, LAYERS = 15_000, 48, 64, 2
STEPS, WARMUP, BATCH, RATE, MASKED = 4000, 100, 32, 2e-3, 0.2


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    known = sorted({word for language in (SOURCE, *OTHERS, *TARGETS) for word in words(language).values()})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *known, *FACES.values()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="<s>", sep_token="</s>", model_max_length=64, **named
    )


def new_model(vocabulary: int) -> XLMRobertaForMaskedLM:
    """A random start. At this width BERT's 0.02 would leave attention asleep for thousands of steps."""
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


def main(out: Path) -> None:
    """Generate the text, train, and save in half precision."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    texts = [plain_text(language, LINES, "pretraining") for language in (SOURCE, *OTHERS)]
    blocks = torch.cat([pack(lines, tokenizer, LENGTH) for lines in texts])
    model = new_model(len(tokenizer))
    print(f"{len(blocks):,} blocks, {model.num_parameters():,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1, 3 * (1 - step / STEPS))
    )
    special, total = torch.tensor(tokenizer.all_special_ids), 0.0
    for step in range(1, STEPS + 1):
        batch = blocks[torch.randint(len(blocks), (BATCH,))]
        inputs, labels = mask(batch, MASKED, special, tokenizer.mask_token_id, len(tokenizer))
        loss = masked_loss(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 250 == 0:
            print(f"step {step}: loss {total / 250:.3f}", flush=True)
            total = 0.0
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
