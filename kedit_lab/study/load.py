"""EAMET's experiments as a grid: what methods keep as a batch fills the weight, and as its subjects get denser."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.geometry import misalignment
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab

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
    """One row per method, size N, facts per subject and seed (EAMET, Figs. 5 and 6; Tables 1 and 15).

    ``load`` is N / d_k. Beside ``efficacy`` and ``specificity`` stand ``prefixed``, the efficacy behind ``prefixes``
    sampled texts of ``length`` tokens (EAMET's Eff; NaN for none), ``misalignment``, the sum of A(i) over the batch
    (NaN for a single fact), and ``seconds`` without statistics. ``overrides`` (``lam=``) change every recipe.
    Raises ValueError for a recipe that does not locate, or a batch larger than the world.
    """
    for name in recipes:
        if not isinstance(find(name), Recipe):
            raise ValueError(f"{name} is not a locate-then-edit recipe and has no residuals to align")
    texts = lab.prefixes(prefixes, length, seed=1)
    rows = []
    for size, density, seed, name in tqdm(list(product(sizes, densities, seeds, recipes)), disable=not progress):
        facts = by_density(size, density, seed)
        made = edit(lab, facts, name, **overrides)
        with made.applied():
            found = evaluate(lab, facts, kinds=("rewrite", "neighborhood")).summary()
            behind = [evaluate(lab, facts, kinds=("rewrite",), prefix=text).summary()["efficacy"] for text in texts]
        layer = made.recipe.layers[-1]
        k = keys(lab, facts, layer, lab.prefixes(made.recipe.prefixes, made.recipe.prefix_length))
        wrong = misalignment(made.at(layer).left.T.float().to(k), k).sum() if size > 1 else float("nan")
        rows.append(
            {"method": name, "size": size, "load": size / lab.arch.d_k, "per_subject": density, "seed": seed}
            | {"efficacy": found["efficacy"], "prefixed": sum(behind) / len(behind) if behind else float("nan")}
            | {"specificity": found["specificity"], "misalignment": float(wrong)}
            | {"seconds": sum(t for stage, t in made.seconds.items() if stage != "statistics")}
        )
    return pd.DataFrame(rows)
