"""An edit is an object: computed without touching the model, applied and undone bit for bit, saved and loaded."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kedit_lab.edit.recipes import Recipe
from kedit_lab.model.arch import Projection
from kedit_lab.model.lab import Lab
from kedit_lab.types import Delta, Fact, Probe

FORMAT = "kedit-lab edit 1"


@dataclass
class Edit:
    """Weight changes of a lab's model, one factored ``Delta`` per layer, and what happened while they were computed.

    ``collisions`` says which facts share a key; ``curves`` holds each group's loss per step; ``seconds`` the time of
    each stage; ``base`` the fingerprint of the weights that the edit was computed on.
    """

    lab: Lab
    recipe: Recipe
    facts: tuple[Fact, ...]
    deltas: dict[int, Delta]
    base: str
    collisions: str = ""
    curves: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    originals: dict[int, Tensor] | None = field(default=None, repr=False)
    written: dict[int, int] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        state = "applied" if self.originals is not None else "not applied"
        note = f"; {self.collisions}" if self.collisions else ""
        return f"Edit({self.recipe.name}: {len(self.facts)} facts, layers {sorted(self.deltas)}, {state}{note})"

    def delta(self, layer: int) -> Float[Tensor, "d_out d_k"]:
        """ΔW of a layer in the orientation v = W k, in float64."""
        layer = self.lab.arch.layer(layer)
        if layer not in self.deltas:
            raise ValueError(f"layer {layer} is not edited; this edit changes layers {sorted(self.deltas)}")
        return self.deltas[layer].matrix()

    def norms(self) -> pd.DataFrame:
        """Per edited layer: ‖ΔW‖, ‖W‖ before the edit, and their ratio (Frobenius)."""
        rows = []
        for layer, delta in self.deltas.items():
            original = (self.originals or {}).get(layer, self.lab.arch.mlp[layer].module.weight)
            rows.append({"layer": layer, "delta": delta.norm(), "weight": float(original.double().norm())})
        frame = pd.DataFrame(rows).set_index("layer")
        return frame.assign(ratio=frame["delta"] / frame["weight"])

    def losses(self) -> pd.DataFrame:
        """The loss curves of the target optimisation, tidy: ``group``, ``step``, ``loss``."""
        rows = [(g, step, loss) for g, curve in enumerate(self.curves) for step, loss in enumerate(curve)]
        return pd.DataFrame(rows, columns=["group", "step", "loss"])

    def apply(self) -> "Edit":
        """Write the edit into the model's weights; the originals are kept for ``undo``."""
        if self.originals is not None:
            raise RuntimeError("this edit is applied already; call undo() first")
        originals, projections = {}, self.lab.arch.mlp
        try:
            for layer, delta in self.deltas.items():
                originals[layer] = projections[layer].module.weight.detach().clone()
                add(projections[layer], delta)
        except BaseException:
            put_back(projections, originals)
            raise
        self.originals = originals
        self.written = {layer: checksum(projections[layer].module.weight) for layer in originals}
        return self

    def undo(self) -> "Edit":
        """Put the original weights back, bit for bit; refuses if something else changed them in between."""
        if self.originals is None:
            raise RuntimeError("this edit is not applied; there is nothing to undo")
        for layer, bits in self.written.items():
            if checksum(self.lab.arch.mlp[layer].module.weight) != bits:
                raise RuntimeError(f"layer {layer} was changed after this edit; undo the later edit first")
        put_back(self.lab.arch.mlp, self.originals)
        self.originals, self.written = None, {}
        return self

    @contextmanager
    def applied(self) -> Iterator["Edit"]:
        """The edit is in the weights inside the context and gone behind it, also after an exception."""
        self.apply()
        try:
            yield self
        finally:
            self.undo()

    def save(self, path: str | Path) -> Path:
        """Write the factors, the facts and a manifest into one safetensors file, atomically."""
        path = Path(path)
        tensors = {}
        for layer, delta in self.deltas.items():
            tensors[f"{layer}.left"] = delta.left.contiguous().cpu()
            tensors[f"{layer}.right"] = delta.right.contiguous().cpu()
        manifest = {
            "format": FORMAT,
            "base": self.base,
            "recipe": asdict(self.recipe),
            "facts": [asdict(fact) for fact in self.facts],
            "collisions": self.collisions,
            "versions": {name: installed(name) for name in ("kedit-lab", "torch", "transformers")},
        }
        text = json.dumps(manifest)
        metadata = {"manifest": text, "digest": digest(text, tensors)}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(save(tensors, metadata=metadata))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path, lab: Lab) -> "Edit":
        """Read a saved edit for ``lab``; a damaged file or another base raises a ValueError."""
        manifest, tensors = read(Path(path))
        if manifest["base"] != lab.fingerprint():
            raise ValueError(
                f"{path} was computed on weights {manifest['base']}, but this lab's are {lab.fingerprint()}; "
                "load the same model, and undo any edit that is applied"
            )
        layers = sorted({int(name.split(".")[0]) for name in tensors})
        deltas = {i: Delta(tensors[f"{i}.left"].to(lab.anchor.device), tensors[f"{i}.right"].to(lab.anchor.device))
                  for i in layers}  # fmt: skip
        recipe = Recipe(**manifest["recipe"] | {"layers": tuple(manifest["recipe"]["layers"])})
        facts = tuple(map(revive, manifest["facts"]))
        return cls(lab, recipe, facts, deltas, manifest["base"], manifest["collisions"])


def add(projection: Projection, delta: Delta) -> None:
    """W ← W + ΔW in place: summed in float64, rounded once to the weight's dtype."""
    weight = projection.module.weight
    with torch.no_grad():
        weight.copy_((weight.double() + projection.stored(delta.matrix()).to(weight.device)).to(weight.dtype))


def put_back(projections: list[Projection], originals: dict[int, Tensor]) -> None:
    """Copy original weights back, bit for bit."""
    with torch.no_grad():
        for layer, original in originals.items():
            projections[layer].module.weight.copy_(original)


def checksum(weight: Tensor) -> int:
    """A cheap sum over a weight's bits that tells whether it was written to."""
    bits = weight.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])
    return int((bits.long() * (torch.arange(bits.numel(), device=bits.device).view_as(bits) % 8191 + 1)).sum())


def installed(name: str) -> str:
    """A package's version; a checkout that is only on the path has none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def digest(manifest: str, tensors: dict[str, Tensor]) -> str:
    """A hash over a manifest and the names and bits of tensors."""
    sha = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(manifest, tensors) of a saved edit; anything but an undamaged one raises a ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no saved edit at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text, written = metadata["manifest"], metadata["digest"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a readable saved edit ({error!r}); save it again") from error
    if written != digest(text, tensors):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum; save it again")
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} is in the format {manifest['format']!r}, this version reads {FORMAT!r}; save it again"
        )
    return manifest, tensors


def revive(row: dict[str, Any]) -> Fact:
    """A Fact from its JSON form."""
    probes = {key: tuple(Probe(**probe) for probe in row[key]) for key in ("neighborhood", "portability")}
    return Fact(**row | probes | {"paraphrases": tuple(row["paraphrases"])})
