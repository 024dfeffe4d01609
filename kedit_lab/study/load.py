"""EAMET's experiments as a grid: what methods keep as a batch fills the weight, and as its subjects get denser."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import find
from kedit_lab.model.lab import Lab
from kedit_lab.study.sweep import sweep

METHODS = ("memit", "memit-merge", "pmet", "alphaedit", "eamet", "eamet-merge")


def load_study(
    lab: Lab,
    sizes: Sequence[int] = (50, 200),
    densities: Sequence[int] = (1, 3),
    recipes: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    prefixes: int = 2,
    length: int = 20,
    progress: bool = False,
    **overrides: Any,
) -> pd.DataFrame:
    """One row per size N, facts per subject, seed and method (EAMET, Figs. 5 and 6; Tables 1 and 15).

    ``load`` is N / d_k. Beside the metrics stand ``prefixed``, the efficacy behind ``prefixes`` sampled texts of
    ``length`` tokens (EAMET's Eff; missing for none), ``misalignment``, the sum of A(i) over the batch (NaN for a
    single fact), and ``seconds`` without statistics. ``overrides`` (``lam=``) change every recipe.
    Raises ValueError for a recipe that does not locate, or a batch larger than the world.
    """
    for name in recipes:
        if not isinstance(find(name), Recipe):
            raise ValueError(f"{name} is not a locate-then-edit recipe and has no residuals to align")
    grid = {"size": sizes, "per_subject": densities, "seed": seeds, "method": recipes}
    return sweep(lab, grid, progress=progress, contexts=prefixes, length=length, **overrides)
