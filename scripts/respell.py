"""Respell texts of Latin letters in another script, letter by letter: a language of which a base
knows neither the script nor the pieces, from any language at hand.

    python scripts/respell.py mad.txt mad-cyrillic.txt
    python scripts/respell.py --column text test.tsv test-cyrillic.tsv
"""

import argparse
import csv
from pathlib import Path

LATIN = "abcdefghijklmnopqrstuvwxyz"
CYRILLIC = "абцдефгхийклмнопярстувшжыз"
RESPELT = str.maketrans(LATIN + LATIN.upper(), CYRILLIC + CYRILLIC.upper())


def respelt(text: str) -> str:
    """A text with each Latin letter as one Cyrillic letter; what is none stays."""
    return text.translate(RESPELT)


def main() -> None:
    """Read the arguments, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--column", help="of a TSV file, the only one that is respelt")
    arguments = parser.parse_args()
    if arguments.column is None:
        text = arguments.old.read_text(encoding="utf-8")
        arguments.new.write_text(respelt(text), encoding="utf-8")
        return
    with arguments.old.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with arguments.new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        for row in rows:
            row[arguments.column] = respelt(row[arguments.column])
            writer.writerow(row)


if __name__ == "__main__":
    main()
