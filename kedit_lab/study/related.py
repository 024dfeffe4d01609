"""S2RKE's experiments as one-liners: subject density, same against different subject, homogeneous against not.

Each runs "batch" (one call) or "sequential" (one fact after another, measured at the end) and returns a tidy table,
one row per setting and seed with the metrics as columns.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kedit_lab.facts.sets import pair
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.sweep import KINDS, MODES, sweep, written


def density_study(lab: Lab, n: int = 30, densities: Sequence[int] = (1, 2, 3), recipes: Sequence[str] = ("memit",),
                  modes: Sequence[str] = MODES, seeds: Sequence[int] = range(5), progress: bool = False,
                  **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """``n`` facts with 1, 2 or 3 per subject (S2RKE, Figs. 2 and 8a): low, medium, high ``density``."""
    grid = {"method": recipes, "mode": modes, "per_subject": densities, "seed": seeds}
    return sweep(lab, grid, progress=progress, size=n, **overrides).rename(columns={"per_subject": "density"})


def subject_study(lab: Lab, n: int = 5, recipes: Sequence[str] = ("memit",), modes: Sequence[str] = MODES,
                  seeds: Sequence[int] = range(5), metric: str = "score", progress: bool = False,
                  **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """Same against distinct ``subjects``, equal n (S2RKE, Figs. 3, 8b); ``sd`` is metric(same) - metric(distinct)."""
    grid = {"method": recipes, "mode": modes, "subjects": ("same", "distinct"), "seed": seeds}
    found = sweep(lab, grid, progress=progress, size=n, **overrides)
    wide = found.pivot_table(metric, ["method", "mode", "seed"], "subjects")
    difference = (wide["same"] - wide["distinct"]).rename("sd")
    return found.merge(difference, left_on=["method", "mode", "seed"], right_index=True)


def first_of(lab: Lab, method: str, mode: str, homogeneous: bool, seed: int, size: int,
             **overrides: Any) -> dict[str, float]:  # fmt: skip
    """Metrics of the first of ``size`` edits when the last shares its subject, or not."""
    facts = pair(size, homogeneous, seed)
    with written(lab, facts, method, mode, **overrides).applied():
        return evaluate(lab, facts[:1], kinds=KINDS).summary().dropna().to_dict()


def pair_study(lab: Lab, n: int = 5, recipes: Sequence[str] = ("memit",), modes: Sequence[str] = ("sequential",),
               seeds: Sequence[int] = range(5), progress: bool = False, **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """The first of ``n`` edits when the last shares its subject (``homogeneous``) or not (S2RKE, Figs. 4, 7, 8c)."""
    grid = {"method": recipes, "mode": modes, "homogeneous": (True, False), "seed": seeds}
    return sweep(lab, grid, measure=first_of, progress=progress, size=n, **overrides)
