"""From facts and a recipe to an Edit: check, group, find targets, solve by layer, and leave the model as it was."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_lab.edit import finetune, journal, mend, neurons, targets
from kedit_lab.edit.edit import Edit, checksums
from kedit_lab.edit.groups import SHARED, clusters, group
from kedit_lab.edit.post import prune_delta, rect_delta
from kedit_lab.edit.recipe import AnyRecipe, Hyper, Neurons, Recipe, Tuning
from kedit_lab.edit.recipes import find
from kedit_lab.edit.solvers import SOLVERS, SPREADS, NullSpace, Preserved
from kedit_lab.edit.weights import Change, add, keep, put_back, summed, write
from kedit_lab.extract.keys import grouped_mean, keys, read
from kedit_lab.extract.moments import checked, stored
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.process import spare
from kedit_lab.types import Fact, Memory, NoUpdate, several

ZERO = "the update is zero: the model says these targets already, or lr, clamp or steps is too small"
OTHERS: dict[type, Callable[..., tuple[dict[str, Change], list]]] = {
    Tuning: finetune.train,
    Neurons: neurons.train,
    Hyper: mend.apply,
}


def edit(lab: Lab, facts: Sequence[Fact], recipe: str | AnyRecipe = "memit", moment_texts: Sequence[str] | None = None,
         cache: Path | None = None, memory: Memory | None = None, basis: "Basis | None" = None,
         watch: targets.Watch | None = None, folder: str | Path | None = None, **overrides: Any) -> Edit:  # fmt: skip
    """Compute an edit of ``facts`` with a recipe (name or object; every field can be overridden by keyword).

    The model is unchanged afterwards, bit for bit, also after an exception; apply the returned ``Edit`` to change it.
    ``memory`` holds the keys of earlier batches for recipes that count them (see ``remember``), ``basis`` the prefixes
    and statistics of the unedited model, which later batches of a sequence use too. ``watch(step, residuals)`` is
    called at every pass of the target optimisation with δ as it stands (groups x d_model, zero where not begun); what
    it raises ends the edit. With a ``folder``, target values are on the disk as soon as they are found, and a run that
    was cut, by kill -9 too, goes on behind them to the same bits; then the edit itself (of other recipes: that alone),
    which the next call returns at once. Raises ValueError for an unknown recipe, field or layer, an empty or
    conflicting batch, a watch that is no function, NaN weights, when the update comes out as zero, and, before anything
    is computed, for a folder of another edit or of other files, one that cannot be written to or one without room.
    """
    recipe = find(recipe).on(lab.arch, **overrides)
    facts = several("facts", facts, Fact)
    moment_texts = None if moment_texts is None else checked(moment_texts)
    check(lab, facts, recipe, watch)
    if folder is None:
        return compute(lab, facts, recipe, moment_texts, cache, memory, basis, watch)
    folder = Path(folder)
    asked = journal.plan(lab, facts, recipe, moment_texts, memory, basis and basis.preserved)
    made = journal.prepared(folder, lab, facts, recipe, asked)
    if made is None:
        with journal.written(folder) as log:
            made = compute(lab, facts, recipe, moment_texts, cache, memory, basis, watch, log)
            made.save(folder / journal.FINISHED)
    return made


def attempt(lab: Lab, facts: Sequence[Fact], recipe: str | AnyRecipe = "memit", watch: targets.Watch | None = None,
            **overrides: Any) -> Edit:  # fmt: skip
    """``edit``, or an Edit of no weight where there is nothing to write: facts that a study draws may be so already."""
    recipe, began = find(recipe).on(lab.arch, **overrides), time.perf_counter()
    try:
        return edit(lab, facts, recipe, watch=watch)
    except NoUpdate as nothing:
        spent = {"targets": time.perf_counter() - began}
        return Edit(lab, recipe, tuple(facts), {}, lab.fingerprint(), curves=nothing.curves, seconds=spent)


def compute(lab: Lab, facts: tuple[Fact, ...], recipe: AnyRecipe, moment_texts: Sequence[str] | None,
            cache: Path | None, memory: Memory | None, basis: "Basis | None", watch: targets.Watch | None,
            log: journal.Journal | None = None) -> Edit:  # fmt: skip
    """The edit of checked facts with a recipe that names its layers; ``log`` is told every batch of target values."""
    base, clock = lab.fingerprint(), {}
    if not isinstance(recipe, Recipe):
        with timed(clock, "training"):
            trained, losses = OTHERS[type(recipe)](lab, facts, recipe)
        return Edit(lab, recipe, facts, trained, base, "", losses, clock, found=checksums(lab, trained))
    with timed(clock, "statistics"):
        known = basis or Basis.of(lab, recipe, moment_texts, cache)
    prefixes, preserved = known.prefixes, dict(known.preserved)
    del known
    if log is not None:
        log.begin(prefixes)
    if memory is not None and recipe.memory:
        preserved = {at: p.with_past(memory.past[at]) if at in memory.past else p for at, p in preserved.items()}
    parts = list(chunks(facts, recipe.block or len(facts))) if recipe.alone else [facts]
    total: dict[str, Change] = {}
    originals: dict[str, Tensor] = {}
    curves, shared = [], []
    try:
        for part in parts:
            left = preserved if len(parts) == 1 else dict(preserved)  # what is solved once is let go layer by layer
            deltas, found, shared = locate(lab, part, recipe, prefixes, left, clock, watch, log)
            curves += found
            total = summed(total, deltas)
            if len(parts) > 1:  # the next block is computed on the model as edited so far
                keep(lab.arch, deltas, originals)
                write(lab.arch, deltas)
    finally:
        put_back(lab.arch, originals)
    if not total:
        raise NoUpdate(ZERO, curves)
    told = describe(shared, len(facts), recipe) if len(parts) == 1 else ""
    changes = {name: after(lab, name, delta, recipe) for name, delta in total.items()}
    return Edit(lab, recipe, facts, changes, base, told, curves, clock, found=checksums(lab, changes))


def locate(lab: Lab, facts: Sequence[Fact], recipe: Recipe, prefixes: Sequence[str],
           preserved: dict[int, Any], clock: dict[str, float], watch: targets.Watch | None = None,
           log: journal.Journal | None = None) -> tuple[dict[str, Change], list, list[int]]:  # fmt: skip
    """(deltas, loss curves, sizes of key clusters) of facts that are edited together."""
    groups = group(lab, facts, recipe.group, recipe.layers[-1], recipe.similarity, recipe.token)
    with timed(clock, "targets"):
        spare(lab)  # what looking for statistics held
        found = targets.values(lab, facts, groups, recipe, prefixes, watch, log)
    if not found.z.isfinite().all() or not all(map(isfinite, chain(*found.curves))):
        raise ValueError("the targets or losses hold NaN or infinite values; load an undamaged checkpoint, or lower lr")
    if torch.equal(found.z, found.h):
        if recipe.alone and recipe.block:
            return {}, found.curves, []  # other blocks may still change something
        raise NoUpdate(ZERO, found.curves)
    z, known, curves = found.z, found.keys, found.curves
    del found
    deltas, shared = solve(lab, facts, recipe, prefixes, z, preserved, clock, known)
    return deltas, curves, shared


@dataclass(frozen=True)
class Basis:
    """What every batch of a sequence takes from the unedited model: sampled prefixes, and what is to be preserved."""

    prefixes: tuple[str, ...]
    preserved: dict[int, Preserved | NullSpace]

    @classmethod
    def of(cls, lab: Lab, recipe: Recipe, texts: Sequence[str] | None = None, cache: Path | None = None) -> "Basis":
        """Read the model as it is now, for a recipe that names its layers (``find(name).on(lab.arch)``)."""
        preserved: dict[int, Preserved | NullSpace] = {}
        for layer in recipe.layers:
            if recipe.statistics == "identity":
                moment = partial(torch.eye, lab.arch.mlp[layer].d_in, device=lab.anchor.device)
            else:
                moment = stored(lab, layer, texts, cache)
            if recipe.solver == "null-space":
                preserved[layer] = NullSpace(moment, recipe.threshold, recipe.gamma)
            else:
                preserved[layer] = Preserved(moment, recipe.lam_of(layer))
        return cls(lab.prefixes(recipe.prefixes, recipe.prefix_length), preserved)


def solve(lab: Lab, facts: Sequence[Fact], recipe: Recipe, prefixes: Sequence[str], z: Tensor,
          preserved: dict[int, Any], clock: dict[str, float],
          known: Tensor | None = None) -> tuple[dict[str, Change], list[int]]:  # fmt: skip
    """(deltas per weight, sizes of key clusters): each layer writes its share of what is still missing at the last one.

    Keys and current values of a layer are read with the earlier layers' updates in place, as in the reference code,
    unless the means of the only layer are ``known``. ``z`` is worked in and ``preserved`` emptied on the way: both are
    large.
    """
    known = known if len(recipe.layers) == 1 else None  # nothing is changed below it
    deltas: dict[str, Change] = {}
    originals: dict[str, Tensor] = {}
    shared: list[int] = []
    try:
        for index, layer in enumerate(recipe.layers):
            projection, kept = lab.arch.mlp[layer], preserved.pop(layer)
            with timed(clock, "statistics"):
                spare(lab, collect=True)  # what the passes of the targets, or the layer before, held
                if isinstance(kept, NullSpace):
                    kept.find()
                    spare(lab)
            with timed(clock, "keys"):
                k, met, now = current(lab, facts, recipe, layer, prefixes, known)
                spare(lab, collect=True)  # what these passes held, before the solve asks for d_k x d_k
            share = SPREADS[recipe.spread](len(recipe.layers) - index)
            extra: dict[str, Any] = {"equality": {"met": met}, "relaxed": {"mu": recipe.mu}}.get(recipe.solver, {})
            with timed(clock, "solve"):
                missing = (z if layer == recipe.layers[-1] else z.clone()).sub_(now.to(z)).mul_(share)
                del now
                delta = SOLVERS[recipe.solver](k, missing, kept, **extra)
                del kept, missing, met, extra
                spare(lab)
            deltas[projection.name] = delta
            if layer == recipe.layers[-1]:
                shared = clusters(k)
            else:
                originals[projection.name] = projection.module.weight.detach().clone()
                add(projection, delta)
            del k
    finally:
        put_back(lab.arch, originals)
    return deltas, shared


def current(lab: Lab, facts: Sequence[Fact], recipe: Recipe, layer: int, prefixes: Sequence[str],
            known: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """(averaged keys, keys at which an equality holds if one does, current values where the target is stated).

    Values are read behind the bare prompt; R-ROME's, like its keys, are the mean over contexts. ``known`` are grouped
    means of keys that were read before.
    """
    equal = recipe.solver == "equality"
    mean = equal and recipe.met == "mean"
    last = recipe.layers[-1]
    now = read(lab, facts, recipe.written, [last], (prefixes or None) if mean else None, recipe.token,
               lambda states: states.float().mean(1))[last]  # fmt: skip
    if known is not None and recipe.average == "grouped" and not equal:
        return known, None, now
    average = grouped_mean if recipe.average == "grouped" else partial(torch.mean, dim=1)
    wanted = partial(read, lab, facts, "key", [layer], prefixes or None, recipe.token)
    if equal and not mean:
        k, bare = wanted(lambda states: torch.stack([average(states), states[:, 0]], 1))[layer].unbind(1)
        return k, bare, now
    k = wanted(average)[layer]
    return k, k if equal else None, now


def after(lab: Lab, name: str, delta: Change, recipe: Recipe) -> Change:
    """A finished change as the recipe's post-processing leaves it."""
    projection = lab.arch.weight(name)
    weight = projection.stored(projection.module.weight)
    if recipe.post == "rect":
        return rect_delta(delta, weight, recipe.keep)
    return prune_delta(delta, weight, recipe.log_base) if recipe.post == "prune" else delta


def remember(lab: Lab, facts: Sequence[Fact], recipe: AnyRecipe, memory: Memory | None = None,
             basis: Basis | None = None) -> Memory:  # fmt: skip
    """The memory with a batch's keys added, read on the model as it is now: call it while the edit is applied.

    AlphaEdit adds Σ k kᵀ of a batch once all layers carry its update (its Eq. 14 and code).
    """
    memory = memory or Memory()
    if not isinstance(recipe, Recipe) or not recipe.memory:
        return memory
    prefixes = basis.prefixes if basis else lab.prefixes(recipe.prefixes, recipe.prefix_length)
    past = dict(memory.past)
    for layer, found in keys(lab, facts, recipe.layers, prefixes or None, recipe.token).items():
        k = found.double()
        past[layer] = past.get(layer, torch.zeros_like(k.T @ k)) + k.T @ k
    return Memory(past, memory.facts + len(facts))


def describe(sizes: Sequence[int], facts: int, recipe: Recipe) -> str:
    """What the clusters mean for this recipe, as one sentence; empty if no key is shared."""
    sharing = sum(size for size in sizes if size > 1)
    if not sharing:
        return ""
    fate = "their values are averaged" if recipe.group == "each" else "each set of them gets one joint value"
    return f"{sharing} of {facts} facts share a key (cosine > {SHARED}): with {recipe.name} {fate}"


def check(lab: Lab, facts: Sequence[Fact], recipe: AnyRecipe, watch: Any = None) -> None:
    """Raise a ValueError for a batch that cannot be edited as it stands, and for a watch that cannot be called."""
    if not facts:
        raise ValueError("facts is empty; give at least one fact to edit")
    if watch is not None and not callable(watch):
        raise ValueError(f"watch is {watch!r}; give a function of step and residuals, or None")
    asked: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        for question in ((fact.subject, fact.relation or fact.prompt), ("", fact.text)):
            earlier = asked.setdefault(question, fact)
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
        if torch.cuda.is_initialized():  # a GPU's work is only queued so far
            torch.cuda.synchronize()
        clock[stage] = clock.get(stage, 0.0) + time.perf_counter() - began
