"""S2RKE's experiments as one-liners: subject density, same against different subject, homogeneous against not.

Each runs "batch" (one call) or "sequential" (one fact after another, measured at the end) and returns a tidy table,
one row per setting and seed with the metrics as columns.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.facts.sets import by_density, pair
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.collision import draw
from kedit_lab.study.sequence import sequence
from kedit_lab.types import Fact

MODES = ("batch", "sequential")
KINDS = ("rewrite", "paraphrase", "neighborhood")


def measured(lab: Lab, facts: Sequence[Fact], recipe: str, mode: str, asked: Sequence[Fact] | None = None,
             **overrides: Any) -> dict[str, float]:  # fmt: skip
    """Metrics of the ``asked`` facts (all unless given) after all facts were edited at once or one after another."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    if mode == "batch" or getattr(find(recipe), "alone", False):
        with edit(lab, facts, recipe, **overrides).applied():
            report = evaluate(lab, asked or facts, kinds=KINDS)
    else:
        run = sequence(lab, [[fact] for fact in facts], recipe, every=len(facts), kinds=("rewrite",), **overrides)
        with run.applied():
            report = evaluate(lab, asked or facts, kinds=KINDS)
    return report.summary().dropna().to_dict()


def grid(lab: Lab, axis: str, values: Sequence[Any], facts_of: Callable[[Any, int], list[Fact]],
         recipes: Sequence[str], modes: Sequence[str], seeds: Sequence[int], progress: bool, first: bool = False,
         **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """One row per recipe, mode, value of the axis and seed; the metrics of all facts, or of the ``first`` alone."""
    rows = []
    for recipe, mode, value, seed in tqdm(list(product(recipes, modes, values, seeds)), disable=not progress):
        facts = facts_of(value, seed)
        found = measured(lab, facts, recipe, mode, facts[:1] if first else None, **overrides)
        rows.append({"method": recipe, "mode": mode, axis: value, "seed": seed} | found)
    return pd.DataFrame(rows)


def density_study(lab: Lab, n: int = 30, densities: Sequence[int] = (1, 2, 3), recipes: Sequence[str] = ("memit",),
                  modes: Sequence[str] = MODES, seeds: Sequence[int] = range(5), progress: bool = False,
                  **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """``n`` facts with 1, 2 or 3 per subject (S2RKE, Figs. 2 and 8a): low, medium, high ``density``."""
    facts_of = lambda density, seed: by_density(n, density, seed)  # noqa: E731
    return grid(lab, "density", densities, facts_of, recipes, modes, seeds, progress, **overrides)


def subject_study(lab: Lab, n: int = 5, recipes: Sequence[str] = ("memit",), modes: Sequence[str] = MODES,
                  seeds: Sequence[int] = range(5), metric: str = "score", progress: bool = False,
                  **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """Same against distinct ``subjects``, equal n (S2RKE, Figs. 3, 8b); ``sd`` is metric(same) - metric(distinct)."""
    facts_of = lambda subjects, seed: draw(subjects, n, seed)  # noqa: E731
    found = grid(lab, "subjects", ("same", "distinct"), facts_of, recipes, modes, seeds, progress, **overrides)
    wide = found.pivot_table(metric, ["method", "mode", "seed"], "subjects")
    difference = (wide["same"] - wide["distinct"]).rename("sd")
    return found.merge(difference, left_on=["method", "mode", "seed"], right_index=True)


def pair_study(lab: Lab, n: int = 5, recipes: Sequence[str] = ("memit",), modes: Sequence[str] = ("sequential",),
               seeds: Sequence[int] = range(5), progress: bool = False, **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """The first of ``n`` edits when the last shares its subject (``homogeneous``) or not (S2RKE, Figs. 4, 7, 8c)."""
    facts_of = lambda homogeneous, seed: pair(n, homogeneous, seed)  # noqa: E731
    return grid(lab, "homogeneous", (True, False), facts_of, recipes, modes, seeds, progress, True, **overrides)
