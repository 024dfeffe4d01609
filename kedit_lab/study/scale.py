"""What thousands of edits cost on a model of a published shape: seconds by stage, facts a second, memory."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from kedit_lab.edit.groups import group
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import located
from kedit_lab.edit.run import Basis, solve
from kedit_lab.edit.solvers import NullSpace
from kedit_lab.edit.targets import values
from kedit_lab.edit.weights import put_back, write
from kedit_lab.extract.keys import keys
from kedit_lab.extract.moments import lab_text
from kedit_lab.facts.sets import by_density
from kedit_lab.model.lab import Lab
from kedit_lab.study.bench import clock, peak_memory
from kedit_lab.study.cost import needed
from kedit_lab.study.estimate import matrix_rate, operations
from kedit_lab.types import Fact

METHODS = ("memit", "memit-merge", "eamet", "alphaedit")
WORLD = 1000  # facts of the lab world that are taken before subjects are numbered
TEXTS = 150  # documents that the second moment is taken over: it must be there, nobody reads what it says
PER_SUBJECT = 2


def many(n: int, seed: int = 0) -> list[Fact]:
    """``n`` facts, PER_SUBJECT for each subject: the lab world's, then the same ones about numbered namesakes."""
    known = by_density(min(n, WORLD), PER_SUBJECT, seed)
    copies = -(-n // len(known))
    named = [known, *([replace(f, subject=f"{f.subject} {copy}") for f in known] for copy in range(2, copies + 1))]
    return [fact for facts in named for fact in facts][:n]


def measured(lab: Lab, facts: Sequence[Fact], recipe: Recipe, basis: Basis, rate: float) -> dict[str, float]:
    """One edit in its stages: seconds of each, the peak of memory over all of them, and the share of the rate.

    ``keys`` is the preparation of all layers' keys by itself, which papers report; ``solve`` reads them again, layer by
    layer, as earlier layers have been written by then. ``peak`` counts the null spaces of all layers (AlphaEdit's),
    which are found before the clock starts, though an edit finds each when its layer's turn comes.
    """
    left = {layer: copy(known) for layer, known in basis.preserved.items()}  # factors are found anew
    held = sum(known.basis.nbytes for known in left.values() if isinstance(known, NullSpace))
    spent: dict[str, float] = {}
    groups = group(lab, facts, recipe.group, recipe.layers[-1], recipe.similarity, recipe.token)

    def work() -> list[int]:
        _, spent["keys"] = clock(lab, lambda: keys(lab, facts, recipe.layers, basis.prefixes or None))
        found, spent["targets"] = clock(lab, lambda: values(lab, facts, groups, recipe, basis.prefixes))
        writing = partial(solve, lab, facts, recipe, basis.prefixes, found.z, left, {}, found.keys)
        (deltas, _), spent["solve"] = clock(lab, writing)
        originals, spent["apply"] = clock(lab, lambda: write(lab.arch, deltas))
        put_back(lab.arch, originals)
        return [len(curve) for curve in found.curves]

    passes, peak = peak_memory(lab, work)
    counted = sum(needed(lab, facts, groups, recipe, basis.prefixes, passes).values())
    return spent | {"peak": float(peak + held), "share of the rate": counted / spent["targets"] / rate}


def extrapolated(lab: Lab, recipe: Recipe, seen: dict[int, dict[str, float]], n: int) -> dict[str, float]:
    """What ``n`` facts would cost, by the largest sizes that were measured.

    Keys, targets and writing (of factors as wide as there are facts; too much once these are more than key dimensions)
    grow with the facts, memory as it did between the two largest sizes, and what the solve does behind reading its keys
    as its operations do.
    """
    size = max(seen)
    last, times = seen[size], n / size
    more = operations(lab.arch, recipe, n)[1] / operations(lab.arch, recipe, size)[1]
    below = max((at for at in seen if at < size), default=size)
    slope = max(0.0, last["peak"] - seen[below]["peak"]) / max(1, size - below)
    solving = max(0.0, last["solve"] - last["keys"])
    grown = {stage: last[stage] * times for stage in ("keys", "targets", "apply")}
    peak = last["peak"] + slope * (n - size)
    return last | grown | {"solve": grown["keys"] + solving * more, "peak": peak}


def scale(lab: Lab, sizes: Sequence[int] = (100,), extrapolate: Sequence[int] = (), methods: Sequence[str] = METHODS,
          seed: int = 0, progress: bool = False, **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """Seconds by stage, facts a second, peak memory (MB, model included) and share of the machine's matrix rate.

    One row per method and number of facts, ``measured`` or ``extrapolated`` from the measured ones. Every step is taken
    unless ``stop`` is given: what a model with random weights knows says nothing of when a fact would converge.
    Statistics are computed before the clock starts, as they are kept from one edit to the next.
    """
    rate, rows = matrix_rate(lab), []
    texts = lab_text()[:TEXTS]
    with TemporaryDirectory() as folder:
        for method in tqdm(methods, disable=not progress):
            recipe = located(method).on(lab.arch, **{"stop": 0.0, "settled": 0.0} | overrides)
            basis = Basis.of(lab, recipe, texts, Path(folder))
            measured(lab, many(PER_SUBJECT, seed), recipe, basis, rate)  # warm up
            seen = {n: measured(lab, many(n, seed), recipe, basis, rate) for n in sorted(sizes)}
            told = [(n, "measured", row) for n, row in seen.items()]
            told += [(n, "extrapolated", extrapolated(lab, recipe, seen, n)) for n in extrapolate]
            for n, how, row in told:
                spent = {stage: row[stage] for stage in ("keys", "targets", "solve", "apply")}
                seconds = sum(spent.values()) - spent["keys"]  # the solve reads them itself
                rows.append({"method": method, "facts": n, "how": how} | spent | {
                    "seconds": seconds, "facts a second": n / seconds, "peak MB": (lab.nbytes + row["peak"]) / 1e6,
                    "share of the rate": row["share of the rate"]})  # fmt: skip
    return pd.DataFrame(rows)
