"""Checkpoints of a sequence: after every batch its weights, memory and rows, written whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kedit_lab.edit.journal import described
from kedit_lab.edit.recipe import AnyRecipe, Recipe
from kedit_lab.edit.weights import put_tensors
from kedit_lab.model.lab import Lab
from kedit_lab.paths import claim, clear, file_digest, room, whole
from kedit_lab.types import Fact, Memory


@dataclass
class Step:
    """What a batch left: the weights that answer (``state``), those that the next batch edits (``plain``), memory."""

    state: dict[str, Tensor]
    plain: dict[str, Tensor]
    memory: Memory
    rows: list[dict[str, Any]] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, lab: Lab, names: Sequence[str] | dict[str, Tensor], memory: Memory) -> "Step":
        """The named weights as the model carries them now."""
        now = {name: lab.arch.weight(name).module.weight.detach().clone() for name in names}
        return cls(now, now, memory)


class Checkpoints:
    """A folder with ``plan.json`` and one pair of files per finished batch; refuses a folder of another run.

    The batch that is under way has a folder of its own there (``kl.edit(folder=)``), which goes once the batch is done.
    Raises ValueError, before anything is computed, where the folder cannot be written to or has no room for the rest.
    """

    def __init__(self, folder: str | Path, lab: Lab, recipe: AnyRecipe, batches: Sequence[Sequence[Fact]],
                 merge: Any, asked: dict[str, Any]) -> None:  # fmt: skip
        self.folder, self.lab = Path(folder), lab
        left = sum(not self.path(t + 1, "json").exists() for t in range(len(batches)))
        if left:
            room(self.folder, left * self.size(recipe, 1 if merge is None else 2))
        plan = {"merge": None if merge is None else asdict(merge), "asked": asked}
        claim(self.folder, described(lab, recipe, batches) | plan)

    def size(self, recipe: AnyRecipe, states: int) -> int:
        """Bytes of one batch: the edited weights in each state, and the memory; unknown (0) of trained edits."""
        if not isinstance(recipe, Recipe):
            return 0
        modules = [self.lab.arch.mlp[layer] for layer in recipe.layers]
        weights = sum(p.module.weight.numel() * p.module.weight.element_size() for p in modules)
        return states * weights + (sum(8 * p.d_in**2 for p in modules) if recipe.memory else 0)

    def save(self, t: int, step: Step) -> None:
        """Write batch ``t``; its JSON file comes last and makes it count."""
        tensors = {f"state/{name}": tensor for name, tensor in step.state.items()}
        if step.plain is not step.state:
            tensors |= {f"plain/{name}": tensor for name, tensor in step.plain.items()}
        tensors |= {f"past/{layer}": tensor for layer, tensor in step.memory.past.items()}
        clean = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        told = {"rows": step.rows, "health": step.health, "facts": step.memory.facts, "batch": t}
        path = self.path(t, "safetensors")
        try:
            clear(path)
            clear(path.with_suffix(".json"))
            put_tensors(path, clean)
            with whole(self.path(t, "json")) as temporary:
                told["weights"] = file_digest(path)
                temporary.write_text(json.dumps(told | {"seal": seal(told)}), encoding="utf-8")
        except OSError as error:
            raise OSError(f"{error}; what was found before is kept, so make room and start again") from error
        shutil.rmtree(self.under_way(t), ignore_errors=True)

    def load(self) -> list[Step]:
        """The finished batches of an earlier run, in order; a damaged file raises a ValueError."""
        steps: list[Step] = []
        while self.path(len(steps) + 1, "json").exists():
            path = self.path(len(steps) + 1, "safetensors")
            try:
                told = self.told(len(steps) + 1)
                tensors = {name: t.to(self.lab.anchor.device) for name, t in load_file(path).items()}
            except (OSError, ValueError, SafetensorError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); delete its JSON file and what follows to compute it anew"
                ) from error
            parts: dict[str, dict[str, Tensor]] = {"state": {}, "plain": {}, "past": {}}
            for key, tensor in tensors.items():
                kind, _, name = key.partition("/")
                parts[kind][name] = tensor
            past = {int(layer): tensor.to(torch.float64) for layer, tensor in parts["past"].items()}
            plain = parts["plain"] or parts["state"]
            steps.append(Step(parts["state"], plain, Memory(past, told["facts"]), told["rows"], told["health"]))
            shutil.rmtree(self.under_way(len(steps)), ignore_errors=True)
        return steps

    def told(self, t: int) -> dict[str, Any]:
        """What batch ``t`` left in its JSON file; a ValueError unless that and its weights are as they were written."""
        told = json.loads(self.path(t, "json").read_text(encoding="utf-8"))
        written = told.pop("seal", None) if isinstance(told, dict) else None
        if written is None:
            raise ValueError("it has no checksum beside it, as earlier versions wrote none")
        if written != seal(told) or told["batch"] != t or told["weights"] != file_digest(self.path(t, "safetensors")):
            raise ValueError("it does not match its checksum")
        return told

    def path(self, t: int, suffix: str) -> Path:
        return self.folder / f"after-{t:05}.{suffix}"

    def under_way(self, t: int) -> Path:
        """Where the edit of batch ``t`` keeps what it has found."""
        return self.folder / f"batch-{t:05}"


def seal(told: dict[str, Any]) -> str:
    """SHA-256 of what a JSON file tells, in its JSON form."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
