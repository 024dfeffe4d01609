"""data/claims.csv: every experiment of the papers with the verdict that a notebook printed; nothing in it is typed."""

import csv
import io
import re
from collections import Counter
from pathlib import Path

import nbformat

from kedit_lab.study.course import experiments
from tests.notebooks.conventions import output_texts

COLUMNS = ("id", "claim", "notebook", "cell", "measured", "verdict", "why")
PRINTED = re.compile(
    r"claim (\S+): .*?^verdict: ([^(\n]+?)(?: \(([^\n]*)\))?\nmeasured: ([^\n]*)", re.DOTALL | re.MULTILINE
)
OPEN = "not tested"


def printed(path: Path) -> list[dict[str, str]]:
    """The claims in a notebook's saved outputs."""
    rows = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            for text in output_texts(output):
                rows += [
                    {"id": name, "notebook": path.stem, "cell": str(cell["execution_count"]), "measured": measured,
                     "verdict": verdict, "why": why or ""}
                    for name, verdict, why, measured in PRINTED.findall(text)
                ]  # fmt: skip
    return rows


def register(paths: list[Path]) -> str:
    """The text of data/claims.csv, given the notebooks. Raises ValueError where two cells test one claim."""
    found = [row for path in paths for row in printed(path)]
    twice = [name for name, count in Counter(row["id"] for row in found).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: tested in more than one cell")
    by_id = {row["id"]: row for row in found}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, row in experiments().iterrows():
        needs = {"verdict": "needs a large model" if row["needs"] else OPEN, "why": row["needs"]}
        writer.writerow({"id": name, "claim": row["claim"]} | by_id.get(name, needs))
    return text.getvalue()


def count(text: str) -> str:
    """The verdicts counted, in words, as README says them."""
    verdicts = Counter(row["verdict"] for row in csv.DictReader(io.StringIO(text)))
    names = ("holds", "partly", "does not hold", "needs a large model", OPEN)
    return ", ".join(f"{verdicts[name]} {name}" for name in names if verdicts[name])
