"""Do two versions of the code learn the same vectors, bit for bit?

    python scripts/same_vectors.py CHECKOUT [OTHER]

Makes a tiny base and texts, has the command line of each checkout learn vectors from them, and
prints a SHA-256 of the tensors and of vector.json of every vector. With two checkouts it also says
which differ, and ends with code 1 where one does. Commits are compared by worktrees: `git worktree
add ../before COMMIT`, then `python scripts/same_vectors.py ../before .`.
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = [
    f"{onset}{vowel}"
    for onset in "b d f g k l m n p r s t v z".split()
    for vowel in "a e i o u".split()
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SETTINGS = {
    "max_steps": 6,
    "evaluate_every": 2,
    "batch_size": 4,
    "length": 16,
    "learning_rate": 0.01,
}
SHORT = [part for name, value in SETTINGS.items() for part in ("--set", f"training.{name}={value}")]
SHORT += ["--set", "training.precision=fp32", "--base", "base"]
PROGRAM = "from deftx.cli import main; main()"  # in every version of the checkout
LANGUAGE = ["fit", "language", *SHORT, "--set", "training.min_steps=0", "--text", "text.txt"]
TASK = ["fit", "task", *SHORT, "--train", "train.tsv", "--valid", "valid.tsv"]
COMMANDS = {
    "deftx": [*LANGUAGE, "--k", "5%", "--rank", "3"],
    "lt-sft": [*LANGUAGE, "--k", "300", "--method", "lt-sft"],
    "variance": [*LANGUAGE, "--k", "5%", "--rank", "90%", "--set", "training.accumulate=2"],
    "seed": [*LANGUAGE, "--k", "5%", "--rank", "3", "--seed", "1"],
    "task": [*TASK, "--k", "5%", "--rank", "3", "--source", "deftx"],
    "task-alone": [*TASK, "--k", "5%", "--method", "lt-sft"],
}


def main() -> None:
    """Print the digests of each checkout, and compare them."""
    checkouts = [Path(name).resolve() for name in sys.argv[1:]]
    if len(checkouts) not in (1, 2):
        sys.exit(__doc__)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        for number, checkout in enumerate(checkouts):
            place = Path(folder, str(number))
            place.mkdir()
            results.append(learn(checkout, Path(folder), place))
    for name in results[0]:
        digests = [result[name] for result in results]
        verdict = "" if len(set(digests)) == 1 else "  DIFFERENT"
        print(f"{name:22} {'  '.join(digest[:16] for digest in digests)}{verdict}")
    if any(result != results[0] for result in results):
        sys.exit(1)


def make_inputs(folder: Path) -> None:
    """A tiny random base with a word tokenizer, a text, and labelled data."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=34,
        type_vocab_size=1,
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder / "base")
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    names |= {"pad_token": "<pad>", "sep_token": "</s>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **names).save_pretrained(
        folder / "base"
    )

    drawn = random.Random(0)
    texts = []
    for _ in range(120):
        start, length = drawn.randrange(len(WORDS)), drawn.randint(4, 9)
        texts.append(" ".join(WORDS[(start + step) % len(WORDS)] for step in range(length)))
    (folder / "text.txt").write_text("\n".join(texts[:60]) + "\n")
    for name, part in (("train", texts[60:96]), ("valid", texts[96:])):
        rows = [
            f"{text}\t{'early' if WORDS.index(text.split()[0]) < 35 else 'late'}" for text in part
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")


def learn(checkout: Path, inputs: Path, place: Path) -> dict[str, str]:
    """The digests of what a checkout learns, by vector and file."""
    for name in ("base", "text.txt", "train.tsv", "valid.tsv"):
        (place / name).symlink_to(inputs / name)
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    digests = {}
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-c", PROGRAM, *arguments, "--out", name]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{checkout}: deftx {' '.join(arguments)}: {done.stderr[-2000:]}")
        for file in sorted((place / name).glob("*.safetensors")):
            digests[f"{name}/{file.stem}"] = tensors_digest(file)
        manifest = (place / name / "vector.json").read_bytes()
        digests[f"{name}/vector.json"] = hashlib.sha256(manifest).hexdigest()
    return digests


def tensors_digest(path: Path) -> str:
    """A digest of the tensors in a file, whatever its metadata."""
    from safetensors import safe_open

    whole = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            whole.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            whole.update(tensor.tobytes())
    return whole.hexdigest()


if __name__ == "__main__":
    main()
