"""From facts and a recipe to an Edit: check, group, find targets, solve by layer, and leave the model as it was."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kedit_lab.edit import targets
from kedit_lab.edit.edit import Edit, add, put_back
from kedit_lab.edit.recipes import Recipe, find
from kedit_lab.edit.solvers import SOLVERS, SPREADS, Preserved
from kedit_lab.extract.keys import keys, read
from kedit_lab.extract.moments import second_moment
from kedit_lab.model.lab import Lab
from kedit_lab.types import Delta, Fact

SHARED = 0.99  # cosine above which two keys count as one


def edit(lab: Lab, facts: Sequence[Fact], recipe: str | Recipe = "memit", moment_texts: Sequence[str] | None = None,
         cache: Path | None = None, **overrides: Any) -> Edit:  # fmt: skip
    """Compute an edit of ``facts`` with a recipe (name or object; every field can be overridden by keyword).

    The model is unchanged afterwards, bit for bit, also after an exception; apply the returned ``Edit`` to change it.
    Raises ValueError for an unknown recipe, field or layer, an empty or conflicting batch, NaN weights, or when the
    update comes out as zero.
    """
    recipe = find(recipe).on(lab.arch, **overrides)
    facts = tuple(facts)
    check(lab, facts, recipe)
    base, clock = lab.fingerprint(), {}
    groups = group(facts, recipe.group)
    with timed(clock, "prefixes"):
        prefixes = lab.prefixes(recipe.prefixes, recipe.prefix_length)
    with timed(clock, "targets"):
        found = targets.values(lab, facts, groups, recipe, prefixes)
    if not found.z.isfinite().all() or not all(map(isfinite, chain(*found.curves))):
        raise ValueError("the targets or losses hold NaN or infinite values; load an undamaged checkpoint, or lower lr")
    if torch.equal(found.z, found.h):
        raise ValueError("the update is zero: the model says these targets already, or lr, clamp or steps is too small")
    with timed(clock, "statistics"):
        moments = {layer: second_moment(lab, layer, moment_texts, cache) for layer in recipe.layers}
        preserved = {layer: Preserved(moment, recipe.lam) for layer, moment in moments.items()}
    deltas, shared = solve(lab, facts, recipe, prefixes, found.z, preserved, clock)
    return Edit(lab, recipe, facts, deltas, base, describe(shared, len(facts), recipe), found.curves, clock)


def solve(lab: Lab, facts: Sequence[Fact], recipe: Recipe, prefixes: Sequence[str], z: Tensor,
          preserved: dict[int, Preserved], clock: dict[str, float]) -> tuple[dict[int, Delta], list[int]]:  # fmt: skip
    """(deltas per layer, sizes of key clusters): each layer writes its share of what is still missing at the last one.

    Keys and current values of a layer are read with the earlier layers' updates in place, as in the reference code.
    """
    projections, originals, deltas = lab.arch.mlp, {}, {}
    last = recipe.layers[-1]
    shared: list[int] = []
    try:
        for index, layer in enumerate(recipe.layers):
            with timed(clock, "keys"):
                k = keys(lab, facts, layer, prefixes or None, recipe.token)
                now = read(lab, facts, "block", [last], None, recipe.token)[last][:, 0].float()
            share = SPREADS[recipe.spread](len(recipe.layers) - index)
            with timed(clock, "solve"):
                deltas[layer] = SOLVERS[recipe.solver](k, (z - now) * share, preserved[layer])
            shared = clusters(k)
            if layer != last:
                originals[layer] = projections[layer].module.weight.detach().clone()
                add(projections[layer], deltas[layer])
    finally:
        put_back(projections, originals)
    return deltas, shared


def group(facts: Sequence[Fact], rule: str) -> list[list[int]]:
    """Which facts share one target value: none ("each"), or those of one subject, in order of first appearance."""
    if rule == "each":
        return [[i] for i in range(len(facts))]
    table: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        table.setdefault(fact.subject, []).append(i)
    return list(table.values())


def clusters(keys: Tensor) -> list[int]:
    """Sizes of the sets of facts whose keys coincide (cosine above SHARED with the set's first fact), largest first."""
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    owner = torch.full((len(unit),), -1, device=unit.device)
    for i in range(len(unit)):
        if owner[i] < 0:
            owner[(unit @ unit[i] > SHARED) & (owner < 0)] = i
    return sorted(Counter(owner.tolist()).values(), reverse=True)


def describe(sizes: Sequence[int], facts: int, recipe: Recipe) -> str:
    """What the clusters mean for this recipe, as one sentence; empty if no key is shared."""
    sharing = sum(size for size in sizes if size > 1)
    if not sharing:
        return ""
    fate = "their values are averaged" if recipe.group == "each" else "each set of them gets one joint value"
    return f"{sharing} of {facts} facts share a key (cosine > {SHARED}): with {recipe.name} {fate}"


def collisions(lab: Lab, facts: Sequence[Fact], layer: int | None = None, threshold: float = SHARED) -> pd.DataFrame:
    """Pairs of facts whose keys' cosine exceeds ``threshold``, before anything is solved: ``a``, ``b``, ``cosine``."""
    layer = find("memit").on(lab.arch).layers[-1] if layer is None else layer
    unit = torch.nn.functional.normalize(keys(lab, facts, layer).float(), dim=1)
    cosine = unit @ unit.T
    a, b = (cosine.triu(1) > threshold).nonzero(as_tuple=True)
    texts = [fact.text for fact in facts]
    return pd.DataFrame({"a": [texts[i] for i in a], "b": [texts[i] for i in b], "cosine": cosine[a, b].tolist()})


def check(lab: Lab, facts: Sequence[Fact], recipe: Recipe) -> None:
    """Raise a ValueError for a batch that cannot be edited as it stands."""
    if not facts:
        raise ValueError("facts is empty; give at least one fact to edit")
    asked: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        at = (fact.subject, fact.relation or fact.prompt)
        earlier = asked.setdefault(at, fact)
        if earlier.target_new.strip() != fact.target_new.strip():
            raise ValueError(
                f"conflicting facts: {fact.text!r} should be both {earlier.target_new!r} and {fact.target_new!r}; "
                "keep one of them"
            )
    for layer in recipe.layers:
        if not lab.arch.mlp[layer].module.weight.isfinite().all():
            raise ValueError(f"{lab.arch.mlp[layer].name} holds NaN or infinite values; load an undamaged checkpoint")


@contextmanager
def timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds spent inside the context to ``clock[stage]``."""
    began = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] = clock.get(stage, 0.0) + time.perf_counter() - began
