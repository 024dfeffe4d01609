"""The tour: the collision study as one command runs it, without a notebook (about a minute)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kedit_lab.model.lab import Lab
from kedit_lab.paths import whole
from kedit_lab.study.collision import collision_study

SIZES = (1, 2, 5, 10, 20)
SEEDS = (0, 1, 2)


def tour(lab: Lab, sizes: Sequence[int] = SIZES, seeds: Sequence[int] = SEEDS, progress: bool = False) -> pd.DataFrame:
    """The collision study's table (one row per method, kind of batch, size and seed), the model left as it was."""
    for name, given in (("sizes", sizes), ("seeds", seeds)):
        if not len(given):
            raise ValueError(f"{name} is empty; give at least one")
    return collision_study(lab, sizes, seeds, progress=progress)


def overview(table: pd.DataFrame, metric: str = "efficacy") -> pd.DataFrame:
    """The mean of a metric over seeds: one row per method and kind of batch, one column per size."""
    if metric not in table:
        raise ValueError(f"the table has no column {metric!r}; its columns are {', '.join(table.columns)}")
    return table.pivot_table(metric, ["method", "subjects"], "size", sort=False)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV (four decimals), all of it or nothing; folders are made."""
    path = Path(path)
    with whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")
    return path
