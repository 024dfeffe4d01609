"""The large grids behind the committed figures: ``kedit-lab reproduce ID`` runs one, ``kl.results(ID)`` reads it.

A file in data/results/ is what ``kl.sweep`` writes: a first line that says what ran on which model with which versions,
then one line per point. Names are the ids of the papers' experiments where a grid answers one; ``LAB-`` are our own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kedit_lab.model.lab import Lab
from kedit_lab.paths import data_dir
from kedit_lab.study.sweep import sweep


@dataclass(frozen=True)
class Experiment:
    """A grid with what it asks in one sentence."""

    question: str
    grid: dict[str, Sequence[Any]]
    fixed: dict[str, Any] = field(default_factory=dict)


LOCATE = ("memit", "memit-merge", "pmet", "alphaedit", "eamet", "eamet-mutual", "eamet-merge")
BEHIND = {"contexts": 1, "length": 20}
EXPERIMENTS = {
    "EA-9": Experiment(
        "EAMET, Fig. 6: what do 300 facts keep, the more of them share a subject?",
        {"per_subject": (1, 2, 3, 4, 5), "method": LOCATE, "size": (300,), "seed": (0,)},
        BEHIND,
    ),
    "EA-19": Experiment(
        "EAMET, Tables 3 and 13: what is kept as N / d_k grows beyond one, three facts a subject?",
        {"size": (100, 1000), "method": LOCATE, "per_subject": (3,), "seed": (0,)},
        BEHIND,
    ),
    "LAB-1": Experiment(
        "How much do the preserved keys' weight λ and the subject's density decide?",
        {"lam": (2.0, 20.0, 200.0), "per_subject": (1, 3), "method": ("memit", "memit-merge", "eamet"), "seed": (0,)},
        {"size": 150},
    ),
    "LAB-2": Experiment(
        "How much does the early stop decide, beside the alignment?",
        {"stop": (0.0, 0.01, 0.05, 0.2), "per_subject": (3,), "method": ("memit", "eamet"), "seed": (0,)},
        {"size": 150},
    ),
}


def experiment(name: str) -> Experiment:
    """A registered grid. Raises ValueError for an unknown name and lists those that exist."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; registered are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def reproduce(lab: Lab, name: str, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Run a registered grid, or what is left of it, into data/results/."""
    asked = experiment(name)
    path = data_dir() / "results" / f"{name}.jsonl"
    return sweep(lab, asked.grid, path, jobs, progress=progress, **asked.fixed)


def results(name: str) -> pd.DataFrame:
    """The committed rows of a registered grid. Raises ValueError where it is unknown or was not run."""
    experiment(name)
    path = data_dir() / "results" / f"{name}.jsonl"
    if not path.exists():
        raise ValueError(f"{name} has no results yet; run: kedit-lab reproduce {name}")
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()[1:]])
