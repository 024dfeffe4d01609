"""An edit before and after it is merged back: what a method keeps and costs, and what scaling and pruning return."""

from typing import Any

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.merging import merge
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.ability import passage_accuracy
from kedit_lab.measure.metrics import KINDS, evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.sequence import Run
from kedit_lab.study.sweep import written
from kedit_lab.types import Dense


def remerged(lab: Lab, method: str, mode: str = "batch", seed: int = 0, size: int = 20, questions: int = 200,
             scale: float = 0.8, density: float = 0.2, **overrides: Any) -> dict[str, float]:  # fmt: skip
    """One method on known facts of many subjects, measured as it is and merged with ``scale`` and ``density``.

    The metrics of all prompts and ``ability``, and the merged edit's with ``merged_`` before their names. ``mode`` is
    "batch" or "sequential" (one after another, merged once, at the end). MM4KE, Table 1.
    """
    facts = by_density(size, seed=seed)
    made = written(lab, facts, method, mode, **overrides)
    alone = whole_change(made) if isinstance(made, Run) else made
    told: dict[str, float] = {}
    for prefix, edit in (("", alone), ("merged_", merge(alone, scale, density))):
        with edit.applied():
            found = evaluate(lab, facts, kinds=KINDS[:-1]).summary().dropna().to_dict()
            found["ability"] = passage_accuracy(lab, questions)
        told |= {f"{prefix}{name}": value for name, value in found.items()}
    return told


def whole_change(run: Run) -> Edit:
    """A sequence as one edit: its last weights minus its first. Raises ValueError while its batches are applied."""
    if run.at:
        raise ValueError(f"the model carries batches 1 to {run.at} of this run; undo() them first")
    first, last = run.states[0], run.states[-1]
    deltas = {
        name: Dense(run.lab.arch.weight(name).stored(last[name].double() - first[name].double())) for name in last
    }
    facts = tuple(fact for batch in run.batches[: len(run.states) - 1] for fact in batch)
    return Edit(run.lab, run.recipe, facts, dict(deltas), run.lab.fingerprint())
