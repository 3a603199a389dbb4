"""The section of a transfer: whether the vectors helped, and what to try."""

import json

from deftx.experiments.report.parts import ReportData, Section
from deftx.experiments.report.tables import words_table

FILE = "benefit.json"  # in the folder of a run, written by `deftx.experiments.transfer`


def benefit(data: ReportData) -> Section | None:
    """What is known of each vector, with labels of its language and without."""
    file = data.run.folder / FILE
    if not file.is_file():
        return None
    rows = json.loads(file.read_text(encoding="utf-8"))
    facts = {}
    notes = []
    for row in rows:
        if row["facts"]:
            facts[row["name"]] = "; ".join(row["facts"])
        for advice in row["advice"]:
            notes.append(f"{row['name']}: {advice}.")
    about = (
        "The held-out loss or score says that something was learnt, not that it helps the task. "
        "Only labelled data of the target tell that. Without them, look at how many answers "
        "change, and read some of these."
    )
    table = words_table("What is known.", "", facts)
    return Section("helped", "Did it help?", about, notes, [table])
