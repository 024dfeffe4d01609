"""An edit is an object: computed without touching the model, applied and undone bit for bit, saved and loaded."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kedit_lab.edit import export
from kedit_lab.edit.recipe import AnyRecipe
from kedit_lab.edit.recipes import restore
from kedit_lab.edit.weights import Change, finite, put_back, put_tensors, summed, write
from kedit_lab.model.lab import Lab, checksum
from kedit_lab.types import Delta, Dense, Fact, Probe

FORMAT = "kedit-lab edit 2"


@dataclass
class Edit:
    """Weight changes of a lab's model, one ``Delta`` or ``Dense`` per weight, and what happened while computing them.

    ``deltas`` is keyed by the weight's full name; ``collisions`` says which facts share a key; ``curves`` holds each
    group's loss per step; ``seconds`` the time of each stage; ``base`` the fingerprint of the weights edited, ``found``
    the checksum of each changed one. ``a + b`` and ``0.8 * a`` are edits again.
    """

    lab: Lab
    recipe: AnyRecipe
    facts: tuple[Fact, ...]
    deltas: dict[str, Change]
    base: str
    collisions: str = ""
    curves: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    originals: dict[str, Tensor] | None = field(default=None, repr=False)
    written: dict[str, int] = field(default_factory=dict, repr=False)
    found: dict[str, int] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        state = "applied" if self.originals is not None else "not applied"
        note = f"; {self.collisions}" if self.collisions else ""
        return f"Edit({self.recipe.name}: {len(self.facts)} facts, {len(self.deltas)} weights, {state}{note})"

    def at(self, layer: int) -> Change:
        """The change of the MLP's output projection of a layer, as factors where it has them."""
        name = self.lab.arch.mlp[self.lab.arch.layer(layer)].name
        if name not in self.deltas:
            raise ValueError(f"layer {layer} is not edited; this edit changes {', '.join(self.deltas)}")
        return self.deltas[name]

    def delta(self, layer: int) -> Float[Tensor, "d_out d_k"]:
        """ΔW of the MLP's output projection of a layer in the orientation v = W k, in float64."""
        return self.at(layer).matrix().double()

    def norms(self) -> pd.DataFrame:
        """Per changed weight: ‖ΔW‖, ‖W‖ before the edit (as it stands, if this edit is not applied), and their ratio
        (Frobenius)."""
        rows = []
        for name, delta in self.deltas.items():
            original = (self.originals or {}).get(name, self.lab.arch.weight(name).module.weight)
            rows.append({"name": name, "delta": delta.norm(), "weight": float(original.double().norm())})
        frame = pd.DataFrame(rows, columns=["name", "delta", "weight"]).set_index("name")
        return frame.assign(ratio=frame["delta"] / frame["weight"])

    def losses(self) -> pd.DataFrame:
        """The loss curves of the target optimisation, tidy: ``group``, ``step``, ``loss``."""
        rows = [(g, step, loss) for g, curve in enumerate(self.curves) for step, loss in enumerate(curve)]
        return pd.DataFrame(rows, columns=["group", "step", "loss"])

    def with_deltas(self, deltas: dict[str, Change], name: str) -> "Edit":
        """This edit's facts and base with other weight changes under another name (not applied)."""
        return Edit(self.lab, self.recipe.with_(name=name), self.facts, deltas, self.base, self.collisions, self.curves,
                    found=self.found)  # fmt: skip

    def __mul__(self, factor: float | int) -> "Edit":
        if not math.isfinite(factor):
            raise ValueError(f"the factor is {factor}; give a finite number")
        scaled = {name: delta * float(factor) for name, delta in self.deltas.items()}
        return self.with_deltas(scaled, f"{factor:g} * {self.recipe.name}")

    __rmul__ = __mul__

    def __add__(self, other: "Edit") -> "Edit":
        if self.base != other.base:
            raise ValueError(
                f"these edits were computed on different weights ({self.base}, {other.base}); compute both on the same"
            )
        total = self.with_deltas(summed(self.deltas, other.deltas), f"{self.recipe.name} + {other.recipe.name}")
        both = {"facts": self.facts + other.facts, "curves": self.curves + other.curves}
        return replace(total, **both, found=self.found | other.found)

    def apply(self) -> "Edit":
        """Write the edit into the model's weights; the originals are kept for ``undo``.

        Warns where a weight is not as it was when the edit was computed (another edit is applied, or one that was
        applied then is not): the change is added to what is there. Raises ValueError where the sum is too large.
        """
        return self.put(stacklevel=3)

    def put(self, stacklevel: int) -> "Edit":
        """``apply``, the warning told of the line so many calls above this one."""
        if self.originals is not None:
            raise RuntimeError("this edit is applied already; call undo() first")
        now = checksums(self.lab, self.found.keys() & self.deltas.keys())
        other = [name for name in now if now[name] != self.found[name]]
        if other:
            warnings.warn(
                f"{other[0]} is not as it was when {self.recipe.name} of {len(self.facts)} facts was computed; its "
                "change is added to what is there now",
                stacklevel=stacklevel,
            )
        originals = write(self.lab.arch, self.deltas)
        try:
            finite(self.lab.arch, originals)
            self.written = checksums(self.lab, originals)
        except BaseException:
            put_back(self.lab.arch, originals)
            raise
        self.originals = originals
        return self

    def undo(self) -> "Edit":
        """Put the original weights back, bit for bit; refuses if something else changed them in between."""
        if self.originals is None:
            raise RuntimeError("this edit is not applied; there is nothing to undo")
        for name in self.written:
            if self.changed(name):
                raise RuntimeError(f"{name} was changed after this edit; undo the later edit first")
        put_back(self.lab.arch, self.originals)
        self.originals, self.written = None, {}
        return self

    def changed(self, name: str) -> bool:
        """Whether an edited weight is neither as this edit left it nor, after an undo that was cut, as it was before.

        Without memory to look, no: the originals need none to go back, and they are what was promised.
        """
        weight = self.lab.arch.weight(name).module.weight
        try:
            return checksum(weight) not in (self.written[name], checksum(self.originals[name]))
        except (MemoryError, RuntimeError):
            return False

    @contextmanager
    def applied(self) -> Iterator["Edit"]:
        """The edit is in the weights inside the context and gone behind it, also after an exception."""
        self.put(stacklevel=4)
        try:
            yield self
        finally:
            try:
                self.undo()
            except KeyboardInterrupt:  # waits until the weights are back
                if self.originals is not None:
                    self.undo()
                raise

    def save(self, path: str | Path) -> Path:
        """Write the changes, the facts and a manifest into one safetensors file, atomically."""
        path = Path(path)
        if not path.name or path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder; give the path of a file in it, such as edit.safetensors")
        tensors = {}
        for name, delta in self.deltas.items():
            parts = {part: tensor for part, tensor in vars(delta).items() if tensor is not None}
            tensors |= {f"{name}/{part}": tensor.contiguous().cpu() for part, tensor in parts.items()}
        manifest = {
            "format": FORMAT,
            "base": self.base,
            "chat": self.lab.chat is not None,
            "recipe": asdict(self.recipe) | {"family": type(self.recipe).__name__},
            "facts": [asdict(fact) for fact in self.facts],
            "collisions": self.collisions,
            "curves": self.curves,
            "seconds": self.seconds,
            "versions": {name: installed(name) for name in ("kedit-lab", "torch", "transformers")},
        }
        text = json.dumps(manifest)
        metadata = {"manifest": text, "digest": digest(text, tensors)}
        put_tensors(path, tensors, metadata)
        return path

    def at_home(self) -> None:
        """Raise a ValueError unless the weights are those that this edit was computed on, or it is applied to them."""
        if self.originals is None and self.base != (now := self.lab.fingerprint()):
            raise ValueError(
                f"the model's weights ({now}) are not those that this edit was computed on ({self.base}); undo other "
                "edits, or apply() this one to write the model as it then stands"
            )

    def export(self, path: str | Path) -> Path:
        """Write the edited model and its tokenizer: plain ``from_pretrained(path)`` works without this package.

        Applied, the model as it stands; else with this edit alone. Raises ValueError where the weights are not those
        that it was computed on, for a path that exists, and where nothing can be written.
        """
        self.at_home()
        return export.whole_model(self.lab, {} if self.originals is not None else self.deltas, Path(path))

    def to_peft(self, path: str | Path, rank: int = 256) -> Path:
        """Write the edit as a LoRA adapter: ``PeftModel.from_pretrained(model, path)`` gives the edited logits.

        Raises ValueError where a change's rank exceeds ``rank`` (pruned or trained edits: export the whole model), and
        where ``export`` does.
        """
        self.at_home()
        return export.adapter(self.lab, self.deltas, Path(path), rank)

    @classmethod
    def load(cls, path: str | Path, lab: Lab) -> "Edit":
        """Read a saved edit for ``lab``, posed in a chat or not as it was made; a damaged file, another base, or a chat
        that ``lab`` has no template for raises a ValueError."""
        manifest, tensors = read(Path(path))
        if manifest["base"] != lab.fingerprint():
            raise ValueError(
                f"{path} was computed on weights {manifest['base']}, but this lab's are {lab.fingerprint()}; "
                "load the same model, and undo any edit that is applied"
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            parts.setdefault(name, {})[part] = tensor.to(lab.anchor.device)
        deltas = {name: (Dense if "change" in part else Delta)(**part) for name, part in parts.items()}
        facts = tuple(map(revive, manifest["facts"]))
        lab = lab if manifest.get("chat", False) == (lab.chat is not None) else lab.with_chat(lab.chat is None)
        return cls(lab, restore(manifest["recipe"]), facts, deltas, manifest["base"], manifest["collisions"],
                   manifest["curves"], manifest["seconds"], found=checksums(lab, deltas))  # fmt: skip


def checksums(lab: Lab, names: Iterable[str]) -> dict[str, int]:
    """Checksums of weights as they are now."""
    return {name: checksum(lab.arch.weight(name).module.weight) for name in names}


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
        sha.update(tensors[name].flatten().numpy())
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
        raise ValueError(
            f"{path} is not a readable saved edit ({error!r}); give a whole file that Edit.save wrote"
        ) from error
    if written != digest(text, tensors):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum; save it again")
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path} is in the format {manifest['format']!r}, this version reads {FORMAT!r}; save it again"
        )
    return manifest, tensors


def revive(row: dict[str, Any]) -> Fact:
    """A Fact from its JSON form; fields that an older file lacks keep their defaults."""
    probes = {key: tuple(map(probe, row[key])) for key in ("neighborhood", "portability", "locality") if key in row}
    texts = {key: tuple(row[key]) for key in ("paraphrases", "generation", "aliases") if key in row}
    return Fact(**row | probes | texts)


def probe(row: dict[str, Any]) -> Probe:
    """A Probe from its JSON form."""
    return Probe(**row | {"aliases": tuple(row.get("aliases", ()))})
