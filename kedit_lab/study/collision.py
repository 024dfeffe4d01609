"""The collision study: efficacy against batch size, for one subject and for many (MEMIT-Merge, Figs. 1 and 3)."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.run import attempt
from kedit_lab.facts.sets import distinct_subject, same_subject
from kedit_lab.measure.metrics import Report, evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.types import Fact

ARMS = (("memit", "distinct"), ("memit", "same"), ("memit-merge", "same"))
SIZES = (1, 2, 5, 10, 20, 50)
SUBJECTS: dict[str, Callable[..., list[Fact]]] = {"same": same_subject, "distinct": distinct_subject}


def draw(subjects: str, n: int, seed: int = 0) -> list[Fact]:
    """``n`` facts about one subject ("same") or about n subjects ("distinct"), with the same relations and targets."""
    if subjects not in SUBJECTS:
        raise ValueError(f"subjects is {subjects!r}; choose one of {', '.join(SUBJECTS)}")
    return SUBJECTS[subjects](n, seed=seed)


def trial(
    lab: Lab,
    facts: Sequence[Fact],
    method: str,
    baseline: Report | None = None,
    kinds: Sequence[str] = ("rewrite", "paraphrase", "neighborhood"),
    **overrides: Any,
) -> tuple[Edit, Report]:
    """Edit, evaluate while the edit is applied, undo: (edit, report).

    The edit is one of no weight where there is nothing to write: a fact drawn at random may be so already.
    """
    made = attempt(lab, facts, method, **overrides)
    with made.applied():
        return made, evaluate(lab, facts, baseline, kinds)


def collision_study(
    lab: Lab,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = range(5),
    arms: Sequence[tuple[str, str]] = ARMS,
    progress: bool = False,
    **overrides: Any,
) -> pd.DataFrame:
    """One row per method, kind of batch, size and seed, named so, with ``seconds`` and the metrics."""
    grid = [(method, subjects, size, seed) for size in sizes for seed in seeds for method, subjects in arms]
    if not grid:
        raise ValueError("sizes, seeds or arms is empty; there is nothing to measure")
    rows = []
    for method, subjects, size, seed in tqdm(grid, disable=not progress):
        made, report = trial(lab, draw(subjects, size, seed), method, **overrides)
        measured = report.summary().dropna().to_dict()
        at = {"method": method, "subjects": subjects, "size": size, "seed": seed, "seconds": sum(made.seconds.values())}
        rows.append(at | measured)
    return pd.DataFrame(rows)
