"""What data/results/ holds of the registered grids: ``kedit-lab reproduce ID`` writes it, ``kl.results(ID)`` reads it,
and ``kl.rerun(lab, ID)`` measures one of its points again.

A file is what ``kl.sweep`` writes: a first line that says what ran on which model with which versions, then one line
per point. manifest.json lists them all.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kedit_lab.model.lab import Lab
from kedit_lab.paths import data_dir, whole
from kedit_lab.study.register import EXPERIMENTS, experiment
from kedit_lab.study.sweep import name_of, sweep

# what a grid stores of the machine that ran it: seconds, their ratios, memory
MACHINE = {"seconds", "ratio", "equal seconds", "equal ratio", "keys", "similarities", "answer", "route", "megabytes"}


def reproduce(lab: Lab, name: str, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Run a registered grid, or what is left of it, into data/results/, and bring its manifest up to date."""
    asked = experiment(name)
    path = results_dir() / f"{name}.jsonl"
    rows = sweep(lab, asked.grid, path, jobs, measure=asked.measure, progress=progress, **asked.fixed)
    with whole(results_dir() / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest(), indent=1) + "\n")
    return rows


def manifest() -> dict[str, dict[str, Any]]:
    """What data/results/ holds, by id: the question, the number of points, the head of the file, its SHA-256."""
    listed = {}
    for name, asked in EXPERIMENTS.items():
        path = results_dir() / f"{name}.jsonl"
        if path.exists():
            head, *rows = path.read_text().splitlines()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            listed[name] = {"question": asked.question, "points": len(rows), **json.loads(head), "sha256": digest}
    return listed


def results_dir() -> Path:
    """Where the grids are stored."""
    return data_dir() / "results"


def results(name: str) -> pd.DataFrame:
    """The committed rows of a registered grid. Raises ValueError where it is unknown or was not run."""
    return pd.DataFrame(rows_of(name))


def rows_of(name: str) -> list[dict[str, Any]]:
    """The committed rows as they were written. Raises ValueError as ``results`` does."""
    experiment(name)
    path = results_dir() / f"{name}.jsonl"
    if not path.exists():
        raise ValueError(f"{name} has no results yet; run: kedit-lab reproduce {name}")
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def rerun(lab: Lab, name: str, within: float = 0.1, **at: Any) -> pd.DataFrame:
    """One point of a registered grid measured now, beside what is stored: ``stored``, ``live``, and whether it
    ``agrees``: the two differ by at most ``within``, as a part of the stored number where that is above one.

    ``at`` names the point, as in ``kl.rerun(lab, "S2-1", mode="sequential", per_subject=3)``; an axis that is not given
    stands at its first value. Times and memory are left out. Raises ValueError for an axis or a value that the grid
    has not.
    """
    asked = experiment(name)
    unknown = set(at) - set(asked.grid)
    if unknown:
        raise ValueError(f"{name} has no axis {', '.join(sorted(unknown))}; its axes are {', '.join(asked.grid)}")
    at = {axis: at.get(axis, values[0]) for axis, values in asked.grid.items()}
    row = next((row for row in rows_of(name) if name_of({axis: row[axis] for axis in at}) == name_of(at)), None)
    if row is None:
        raise ValueError(f"{name} has no point {name_of(at)}; look at kl.results({name!r})")
    live = asked.measure(lab, **at, **asked.fixed)
    columns = {"stored": dict(numbers({key: row[key] for key in row if key not in at})), "live": dict(numbers(live))}
    table = pd.DataFrame(columns).dropna(how="all")
    apart = (table["stored"] - table["live"]).abs()
    return table.assign(agrees=apart <= within * table["stored"].abs().clip(lower=1))


def numbers(row: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a point by name, those of its tables among them, without what depends on the machine."""
    for name, value in row.items():
        if name in MACHINE or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield f"{of}{name}", float(value)
        elif isinstance(value, list):
            for i, entry in enumerate(value, 1):
                yield from numbers(entry if isinstance(entry, dict) else {"": entry}, f"{of}{name} {i} ")
