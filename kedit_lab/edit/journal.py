"""The folder of a long edit: target values as they are found, one batch of groups a line, and then the finished edit.

A run that was killed takes the batches that stand there and goes on behind them, to the same bits on the same machine:
which groups are optimised together depends on the model and the facts alone, and the solve is done again.
"""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.finetune import chosen
from kedit_lab.edit.mend import editor_file
from kedit_lab.edit.recipe import AnyRecipe, Hyper, Neurons, Recipe, Tuning
from kedit_lab.edit.solvers import NullSpace, Preserved
from kedit_lab.extract.moments import Texts, content_key
from kedit_lab.model.lab import Lab, checksum
from kedit_lab.paths import Log, claim, clear, file_digest, room
from kedit_lab.types import Fact, Memory

SEARCH = 3  # how targets are sought, counted up when that changes: values of two ways must not be mixed
TARGETS = "targets.log"
FINISHED = "edit.safetensors"
Found = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch d_model"], list[list[float]]]  # h, δ, loss curves


class Journal:
    """Batches of groups that an earlier run found, to be taken in their order; new ones go to the disk behind them."""

    def __init__(self, log: Log) -> None:
        self.log, self.earlier = log, iter(log.records)

    def begin(self, prefixes: Sequence[str]) -> None:
        """Note the contexts that the targets are found behind; a ValueError if the earlier run had others."""
        head = {"prefixes": list(prefixes)}
        found = next(self.earlier, None)
        if found is None:
            self.log.append(head)
        elif found != head:
            raise ValueError(f"{self.log.path} holds targets found behind other prefixes; give another folder")

    def take(self, batch: list[int], like: Tensor) -> Found | None:
        """(h, δ, loss curves) of the next batch of groups, on the device of ``like``; None if it is still to be found.

        Raises ValueError for a log whose batches are other ones.
        """
        found = next(self.earlier, None)
        if found is None:
            return None
        if found["groups"] != batch or "h" not in found:
            raise ValueError(
                f"{self.log.path} was written by another version, with other batches of groups; give another folder"
            )
        h, delta = (
            torch.frombuffer(bytearray(b64decode(found[name])), dtype=torch.float32)
            .view(len(batch), -1)
            .to(like.device)
            for name in ("h", "delta")
        )
        return h, delta, found["curves"]

    def keep(self, batch: list[int], h: Tensor, delta: Tensor, curves: list[list[float]]) -> None:
        """Write a batch (h and δ, groups x d_model) down; it is on the disk when this returns."""
        text = lambda rows: b64encode(rows.float().cpu().contiguous().numpy().tobytes()).decode()  # noqa: E731
        self.log.append({"groups": batch, "h": text(h), "delta": text(delta), "curves": curves})


def described(lab: Lab, recipe: AnyRecipe, batches: Sequence[Sequence[Fact]]) -> dict[str, Any]:
    """What a folder is bound to: the weights, the recipe, the facts, and the form in which they are posed."""
    told = {"base": lab.fingerprint()} | posed(recipe, batches)
    told |= {} if lab.chat is None else {"chat": True}
    return told if lab.work is None else told | {"work": lab.work}


def posed(recipe: AnyRecipe, batches: Sequence[Sequence[Fact]]) -> dict[str, Any]:
    """A recipe, and a hash of the facts."""
    facts = json.dumps([[asdict(fact) for fact in batch] for batch in batches])
    return {"recipe": asdict(recipe), "facts": hashlib.sha256(facts.encode()).hexdigest()}


def plan(lab: Lab, facts: Sequence[Fact], recipe: AnyRecipe, texts: Texts | None = None, memory: Memory | None = None,
         preserved: dict[int, Preserved | NullSpace] | None = None) -> dict[str, Any]:  # fmt: skip
    """All that an edit depends on. What is preserved is named by its text, or by its bits where it is given."""
    past = memory.past if memory is not None and isinstance(recipe, Recipe) and recipe.memory else {}
    editor = editor_file(recipe) if isinstance(recipe, Hyper) else None
    return described(lab, recipe, [facts]) | {
        "search": SEARCH,
        "statistics": content_key(lab, recipe.layers[-1], () if texts is None else texts, 0.0),
        "memory": {str(layer): checksum(keys) for layer, keys in past.items()},
        "basis": None if preserved is None else {str(layer): bits(kept) for layer, kept in preserved.items()},
        "editor": file_digest(editor) if editor is not None and editor.is_file() else None,
    }


def bits(preserved: Preserved | NullSpace) -> list[float | int]:
    """Checksums of what one layer preserves."""
    if isinstance(preserved, NullSpace):
        past = [] if preserved.past is None else [checksum(preserved.past)]
        return [preserved.gamma, preserved.threshold, checksum(preserved.read().float()), *past]
    return [preserved.lam, checksum(preserved.read().float())]


def needed(lab: Lab, facts: Sequence[Fact], recipe: AnyRecipe) -> int:
    """Bytes, about, that the folder of an edit takes: h, δ and curves as text, the weight changes as they are saved."""
    if isinstance(recipe, Tuning):
        wide = lambda p: 8 * recipe.rank * (p.d_in + p.d_out) if recipe.rank else 4 * p.d_in * p.d_out  # noqa: E731
        return sum(wide(p) for p in chosen(lab, recipe))
    if isinstance(recipe, Hyper):
        tokens = sum(len(row.ids) - 1 for row in map(lab.row, facts))
        return sum(8 * tokens * (p.d_in + p.d_out) for layer in recipe.layers for p in lab.arch.ffn(layer))
    if isinstance(recipe, Neurons):
        return sum(8 * len(facts) * (p.d_in + p.d_out) for p in (lab.arch.mlp[layer] for layer in recipe.layers))
    weights = [lab.arch.mlp[layer] for layer in recipe.layers]
    text = len(facts) * (12 * lab.arch.d_model + 24 * recipe.steps)
    if recipe.post == "rect":
        return text + sum(8 * p.d_in * p.d_out for p in weights)
    factors = (recipe.solver == "relaxed" and not recipe.mu) or (recipe.alone and recipe.block > 0)
    n = len(facts)
    return text + sum(8 * p.d_out * n + 8 * p.d_in * (n if factors or n < p.d_in else p.d_out) for p in weights)


def prepared(folder: Path, lab: Lab, facts: Sequence[Fact], recipe: AnyRecipe, asked: dict[str, Any]) -> Edit | None:
    """The finished edit of a folder, or None once the folder is bound to what was asked and has room for it."""
    targets, finished = folder / TARGETS, folder / FINISHED
    if not finished.exists():
        room(folder, needed(lab, facts, recipe) - (targets.stat().st_size if targets.exists() else 0))
    claim(folder, asked)
    if not finished.exists():
        return None
    made = Edit.load(finished, lab)
    if (told := posed(made.recipe, [made.facts])) != (wanted := posed(recipe, [facts])):
        differ = ", ".join(name for name in told if told[name] != wanted[name])
        raise ValueError(f"{finished} is another edit (other {differ}); delete it to compute this one anew")
    return made


@contextmanager
def written(folder: Path) -> Iterator[Journal]:
    """The journal of a folder, for one run at a time; what a kill left half written beside it is removed."""
    log = Log(folder / TARGETS)
    try:
        for name in ("plan.json", FINISHED):
            clear(folder / name)
        yield Journal(log)
    finally:
        log.close()
