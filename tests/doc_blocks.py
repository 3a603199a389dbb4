"""The commands and programs in the pages of docs/, and the files that they need."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tiny import save_base, sentences

ROOT = Path(__file__).parents[1]

BLOCK = re.compile(
    r"(?:<!-- not run: ([^>]+) -->\n)?^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE
)

BASE = "FacebookAI/xlm-roberta-base"


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    reason: str | None  # why it is not run; None: it is

    @property
    def commands(self) -> list[list[str]]:
        lines = self.code.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(language, code, reason or None) for reason, language, code in BLOCK.findall(text)]


def write_own_files(folder: Path) -> Path:
    """The files that the pages ask a person for, in `folder`; the base is a tiny one."""
    save_base(folder / BASE)
    for number, name in enumerate(["ind", "min"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(120, number)))
    for number, name in enumerate(["train", "valid", "test"]):
        rows = [
            f"{text}\t{'positive' if text[-1] in 'ei' else 'negative'}"
            for text in sentences(60, number)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    (folder / "new.txt").write_text("\n".join(sentences(3, 9)))
    return folder
