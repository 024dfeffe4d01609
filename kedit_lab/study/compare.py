"""Every method on every kind of batch, with all metrics and what it costs; and R-SFT with other numbers (MM4KE)."""

import time
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.merging import merge
from kedit_lab.edit.recipes import TABLE
from kedit_lab.edit.run import edit
from kedit_lab.facts.sets import by_density, distinct_subject, same_subject
from kedit_lab.measure.ability import passage_accuracy
from kedit_lab.measure.metrics import KINDS, evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import trim
from kedit_lab.paths import data_dir
from kedit_lab.study.bench import peak_memory
from kedit_lab.study.sweep import written
from kedit_lab.types import Fact

CASES = ("distinct", "same", "massive", "sequential")
UNEDITED = "unedited"
METHODS = (UNEDITED, *TABLE)
EACH, PEOPLE, MASSIVE, ASKED = 10, 3, 200, 50


def case_facts(case: str, seed: int = 0) -> list[Fact]:
    """The facts of a case.

    "same": ten each about three persons; "distinct": the same thirty relations and targets, each asked of another
    person; "sequential": the distinct ones, to be written one after another; "massive": 200 known facts, one a subject.
    """
    if case not in CASES:
        raise ValueError(f"case is {case!r}; choose one of {', '.join(CASES)}")
    if case == "massive":
        return by_density(MASSIVE, seed=seed)
    chosen: dict[str, list[Fact]] = {"same": [], "distinct": []}
    people: set[str] = set()
    for draw in count(1000 * seed):
        same, distinct = same_subject(EACH, seed=draw), distinct_subject(EACH, seed=draw)
        drawn = {fact.subject for fact in [*same, *distinct]}
        if not people & drawn:  # a person met before would make two keys one
            people |= drawn
            chosen["same"] += same
            chosen["distinct"] += distinct
        if len(chosen["same"]) == EACH * PEOPLE:
            break
    return chosen["same" if case == "same" else "distinct"]


def compared(lab: Lab, method: str, case: str, seed: int = 0, questions: int = 150) -> dict[str, Any]:
    """One method on one case: all metrics of ``kl.evaluate``, ``ability``, ``seconds`` and ``megabytes``.

    ``ability`` is the share of passage questions answered, ``seconds`` the edit's without statistics, ``megabytes`` the
    peak above what was in use before. Of many facts every fourth is asked. "unedited" is the model as it is. Where a
    method refuses a case, ``refused`` says why and the metrics are missing.
    """
    facts = case_facts(case, seed)
    asked = facts[:: max(1, len(facts) // ASKED)]
    told: dict[str, Any] = {"facts": len(facts)}
    change: Any = nullcontext()
    if method != UNEDITED:
        trim()
        mode = "sequential" if case == "sequential" else "batch"
        began = time.perf_counter()
        try:
            made, peak = peak_memory(lab, partial(written, lab, facts, method, mode))
        except ValueError as problem:
            return told | {"refused": str(problem).split(";")[0].replace(str(data_dir()), "data")}
        seconds = time.perf_counter() - began
        read = made.seconds.get("statistics", 0.0) if isinstance(made, Edit) else 0.0
        told |= {"seconds": seconds - read, "megabytes": peak / 1e6}
        change = made.applied()
    with change:
        found = evaluate(lab, asked).summary().dropna().to_dict()
        return told | found | {"ability": passage_accuracy(lab, questions)}


def tuned(lab: Lab, schedule: tuple[int, int] = (5, 6), seed: int = 0, size: int = 60, questions: int = 200,
          scale: float = 1.0, density: float = 1.0, **overrides: Any) -> dict[str, float]:  # fmt: skip
    """R-SFT with ``schedule`` (epochs, consecutive steps) and other fields changed, on known facts of many subjects;
    its change merged with ``scale`` and ``density``.

    The metrics of all prompts, ``ability``, the number of gradient ``steps``, and how often the loss of the slowest
    fact was looked at (``longest``).
    """
    facts = by_density(size, seed=seed)
    made = edit(lab, facts, "r-sft", epochs=schedule[0], repeats=schedule[1], **overrides)
    stop = getattr(made.recipe, "stop", 0.0)
    steps = sum(loss >= stop for curve in made.curves for loss in curve)
    with merge(made, scale, density).applied():
        found = evaluate(lab, facts, kinds=KINDS[:-1]).summary().dropna().to_dict()
        return found | {
            "ability": passage_accuracy(lab, questions),
            "steps": steps,
            "longest": max(map(len, made.curves)),
        }
