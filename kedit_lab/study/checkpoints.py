"""Checkpoints of a sequence: after every batch its weights, memory and rows, written whole or not at all."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit_lab.edit.recipe import AnyRecipe
from kedit_lab.model.lab import Lab
from kedit_lab.paths import whole
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
    """A folder with ``plan.json`` and one pair of files per finished batch; refuses a folder of another run."""

    def __init__(self, folder: str | Path, lab: Lab, recipe: AnyRecipe, batches: Sequence[Sequence[Fact]],
                 merge: Any, asked: dict[str, Any]) -> None:  # fmt: skip
        self.folder, self.lab = Path(folder), lab
        facts = json.dumps([[asdict(fact) for fact in batch] for batch in batches])
        plan = {
            "base": lab.fingerprint(),
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "merge": None if merge is None else asdict(merge),
            "asked": asked,
            "facts": hashlib.sha256(facts.encode()).hexdigest(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "plan.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differ = [name for name in plan if found.get(name) != plan[name]]
            if differ:
                raise ValueError(f"{self.folder} holds another run (other {', '.join(differ)}); give another folder")
        else:
            with whole(path) as temporary:
                temporary.write_text(json.dumps(plan), encoding="utf-8")

    def save(self, t: int, step: Step) -> None:
        """Write batch ``t``; its JSON file comes last and makes it count."""
        tensors = {f"state/{name}": tensor for name, tensor in step.state.items()}
        if step.plain is not step.state:
            tensors |= {f"plain/{name}": tensor for name, tensor in step.plain.items()}
        tensors |= {f"past/{layer}": tensor for layer, tensor in step.memory.past.items()}
        clean = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        with whole(self.path(t, "safetensors")) as temporary:
            save_file(clean, temporary)
        told = json.dumps({"rows": step.rows, "health": step.health, "facts": step.memory.facts})
        with whole(self.path(t, "json")) as temporary:
            temporary.write_text(told, encoding="utf-8")

    def load(self) -> list[Step]:
        """The finished batches of an earlier run, in order; a damaged file raises a ValueError."""
        steps: list[Step] = []
        while self.path(len(steps) + 1, "json").exists():
            path = self.path(len(steps) + 1, "safetensors")
            try:
                told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                tensors = {name: t.to(self.lab.anchor.device) for name, t in load_file(path).items()}
            except (OSError, ValueError, SafetensorError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); delete it and what follows to compute it anew"
                ) from error
            parts: dict[str, dict[str, Tensor]] = {"state": {}, "plain": {}, "past": {}}
            for key, tensor in tensors.items():
                kind, _, name = key.partition("/")
                parts[kind][name] = tensor
            past = {int(layer): tensor.to(torch.float64) for layer, tensor in parts["past"].items()}
            plain = parts["plain"] or parts["state"]
            steps.append(Step(parts["state"], plain, Memory(past, told["facts"]), told["rows"], told["health"]))
        return steps

    def path(self, t: int, suffix: str) -> Path:
        return self.folder / f"after-{t:05}.{suffix}"
