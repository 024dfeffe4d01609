"""Writing weight changes into a model and taking them out again, bit for bit, and tensors into a file."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kedit_lab.model.arch import Arch, Projection
from kedit_lab.model.hooks import surely
from kedit_lab.paths import whole
from kedit_lab.types import Delta, Dense

Change = Delta | Dense


def keep(arch: Arch, names: Iterable[str], originals: dict[str, Tensor]) -> None:
    """Note the weights as they are in ``originals``, those that are not noted there yet."""
    for name in names:
        if name not in originals:
            originals[name] = arch.weight(name).module.weight.detach().clone()


def write(arch: Arch, deltas: dict[str, Change]) -> dict[str, Tensor]:
    """W ← W + ΔW for every named weight; returns the originals. All weights come back if anything goes wrong."""
    originals: dict[str, Tensor] = {}
    try:
        for name, delta in deltas.items():
            projection = arch.weight(name)
            originals[name] = projection.module.weight.detach().clone()
            add(projection, delta)
    except BaseException:
        put_back(arch, originals)
        raise
    return originals


def finite(arch: Arch, names: Iterable[str]) -> None:
    """Raise a ValueError where one of the named weights holds NaN or infinite values."""
    for name in names:
        ends = arch.weight(name).module.weight.aminmax()  # NaN where there is one; far quicker than isfinite of all
        if not torch.stack(ends).isfinite().all():
            raise ValueError(f"{name} would hold NaN or infinite values with this edit; scale it down")


def summed(total: dict[str, Change], more: dict[str, Change]) -> dict[str, Change]:
    """Changes of two steps as one."""
    return total | {name: total[name] + delta if name in total else delta for name, delta in more.items()}


def add(projection: Projection, delta: Change) -> None:
    """W ← W + ΔW in place: summed in float64, rounded once to the weight's dtype."""
    weight = projection.module.weight
    with torch.no_grad():
        change = projection.stored(delta.matrix()).to(weight.device).double()
        weight.copy_((weight.double() + change).to(weight.dtype))


def put_back(arch: Arch, originals: dict[str, Tensor]) -> None:
    """Copy original weights back, bit for bit; what interrupts it is raised once all are back."""
    surely(partial(copy_back, arch, originals))


@torch.no_grad()
def copy_back(arch: Arch, originals: dict[str, Tensor]) -> None:
    """Copy weights once, whatever stands there."""
    for name, original in originals.items():
        arch.weight(name).module.weight.copy_(original)


def put_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, from where the tensors are; an OSError says why it could not be."""
    with whole(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error
