"""Merging an edit back into the model it came from: scale and prune one, or combine several (MM4KE, section 3).

Pruning and the merges TIES and DARE are peft's. Everything here works on weight changes and gives an ``Edit`` again.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import pandas as pd
import torch
from jaxtyping import Float
from peft.utils import merge_utils
from torch import Tensor

from kedit_lab.edit.edit import Edit
from kedit_lab.model.process import own_chance
from kedit_lab.types import Dense, Fact, several, within

METHODS = ("linear", "task-arithmetic", "ties", "dare", "slerp")
Flat = Float[Tensor, "..."]


def merge(edit: Edit, scale: float | int = 1.0, density: float | int = 1.0, jointly: bool = False) -> Edit:
    """θ_base + scale · Top_density(Δ): the ``int(density · n)`` largest entries of each matrix, or of all ``jointly``.

    MM4KE's merge with 1 - α = ``scale`` and p = ``density``; the paper says 0.8 and 0.2 without saying of which, so
    both are free here. Raises ValueError outside 0 to 1 (density) or for a scale that is not finite.
    """
    check(density)
    if not within(scale):
        raise ValueError(f"scale is {scale!r}; it must be a finite number")
    name = f"merge({edit.recipe.name}, {scale:g}, {density:g})"
    if density == 1:
        return replace(edit * scale, recipe=edit.recipe.with_(name=name))
    changes = {key: delta.matrix() for key, delta in edit.deltas.items()}
    if jointly:
        flat = top(torch.cat([change.flatten() for change in changes.values()]), density)
        parts = flat.split([change.numel() for change in changes.values()])
        pruned = {key: part.view_as(changes[key]) for key, part in zip(changes, parts, strict=True)}
    else:
        pruned = {key: top(change, density) for key, change in changes.items()}
    return edit.with_deltas({key: Dense(scale * change) for key, change in pruned.items()}, name)


def combine(edits: Sequence[Edit], method: str = "task-arithmetic", weights: Sequence[float | int] | None = None,
            density: float | int = 1.0, seed: int = 0) -> Edit:  # fmt: skip
    """Several edits of one base as one: ΔW from their ΔWs, weight by weight.

    "linear" is their weighted mean, "task-arithmetic" their weighted sum (Ilharco et al. 2023), "ties" elects a sign
    per entry, before weights, and averages what agrees (Yadav et al. 2023, as peft does it), "dare" drops entries at
    random and rescales (Yu et al. 2024), "slerp" walks the arc between two (Shoemake 1985; weights (1-t, t)).
    ``density`` is the share of entries that task arithmetic, "ties" (largest ones) and "dare" (random ones) keep.
    Raises ValueError for an unknown method, under two edits (slerp: other than two), edits of different bases, weights
    that are not finite, of another number, or, where they are divided by their sum ("linear", "slerp"), sum to 0.
    """
    check(density)
    edits = several("edits", edits, Edit)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if len(edits) < 2:
        raise ValueError(f"{len(edits)} edits given; there is nothing to combine under two")
    if len({edit.base for edit in edits}) > 1:
        raise ValueError("these edits were computed on different weights; compute all on the same model")
    shares = [1.0] * len(edits) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(edits):
        raise ValueError(f"{len(shares)} weights for {len(edits)} edits; give one each")
    check_weights(shares, method)
    if method == "slerp" and len(edits) != 2:
        raise ValueError(f"slerp walks between two edits, {len(edits)} given")
    names = list(dict.fromkeys(name for edit in edits for name in edit.deltas))
    deltas = {}
    with own_chance():
        torch.manual_seed(seed)
        for name in names:
            known = [edit.deltas[name].matrix().double() for edit in edits if name in edit.deltas]
            changes = [
                edit.deltas[name].matrix().double() if name in edit.deltas else torch.zeros_like(known[0])
                for edit in edits
            ]
            deltas[name] = Dense(merged(changes, torch.tensor(shares, dtype=torch.float64), method, density))
    facts: tuple[Fact, ...] = tuple(fact for edit in edits for fact in edit.facts)
    title = f"{method}({', '.join(edit.recipe.name for edit in edits)})"
    curves, found = [c for e in edits for c in e.curves], {k: v for e in edits for k, v in e.found.items()}
    return replace(edits[0].with_deltas(deltas, title), facts=facts, curves=curves, found=found)


def check_weights(shares: Sequence[float], method: str) -> None:
    """Raise a ValueError for weights with which a method gives NaN or infinite changes."""
    if not all(map(isfinite, shares)):
        raise ValueError(f"weights are {shares}; give finite numbers")
    total = sum(shares)
    if method in ("linear", "slerp") and not abs(total) > 1e-12 * sum(map(abs, shares)):
        raise ValueError(f"weights sum to {total:g}; {method!r} divides by their sum: give others")


def merged(changes: list[Tensor], weights: Tensor, method: str, density: float | int) -> Tensor:
    """One matrix from several."""
    weights = weights.to(changes[0])
    if method == "linear":
        return merge_utils.task_arithmetic(changes, weights / weights.sum())
    if method == "slerp":
        return slerp(changes[0], changes[1], float(weights[1] / weights.sum()))
    kept = changes if density == 1 or method == "dare" else [top(change, density) for change in changes]
    if method == "task-arithmetic":
        return merge_utils.task_arithmetic(kept, weights)
    if method == "dare":
        return merge_utils.task_arithmetic(
            [c if density == 1 else merge_utils.random_pruning(c, density, rescale=True) for c in kept], weights
        )
    signs = merge_utils.calculate_majority_sign_mask(torch.stack(kept))
    return merge_utils.disjoint_merge(torch.stack(kept) * weights.view(-1, 1, 1), signs)


def slerp(a: Flat, b: Flat, t: float) -> Flat:
    """Spherical interpolation: sin((1-t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, Ω the angle; straight if they align."""
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-6:
        return (1 - t) * a + t * b
    return torch.sin((1 - t) * angle) / angle.sin() * a + torch.sin(t * angle) / angle.sin() * b


def top(change: Flat, density: float | int) -> Flat:
    """The ``int(density · n)`` entries of largest magnitude, the rest zero."""
    return change if density == 1 else merge_utils.magnitude_based_pruning(change, density)


def check(density: float | int) -> None:
    if not within(density, 0, 1):
        raise ValueError(f"density is {density!r}; it is a share between 0 and 1")


def interference(a: Edit, b: Edit) -> pd.DataFrame:
    """What two edits of one base do to each other, weight by weight.

    ``cosine`` of the two ΔW; ``norm_a`` and ``norm_b``; ``conflict``, the share of |ΔW_a·ΔW_b| on entries that pull in
    opposite directions (0.5 for unrelated ones); NaN where only one of them changes the weight.
    """
    if a.base != b.base:
        raise ValueError(f"these edits were computed on different weights ({a.base}, {b.base}); use one base")
    rows = []
    for name in dict.fromkeys([*a.deltas, *b.deltas]):
        row = {"name": name, "norm_a": 0.0, "norm_b": 0.0, "cosine": float("nan"), "conflict": float("nan")}
        row |= {f"norm_{side}": e.deltas[name].norm() for side, e in (("a", a), ("b", b)) if name in e.deltas}
        if name in a.deltas and name in b.deltas:
            product = a.deltas[name].matrix().double() * b.deltas[name].matrix().double()
            size = max(float(product.abs().sum()), 1e-300)
            row["cosine"] = float(product.sum()) / max(row["norm_a"] * row["norm_b"], 1e-300)
            row["conflict"] = float(-product.clamp_max(0).sum()) / size
        rows.append(row)
    return pd.DataFrame(rows).set_index("name")
