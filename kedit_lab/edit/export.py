"""Taking an edit out of this package: as a whole model, or as a peft LoRA adapter where its rank allows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from warnings import catch_warnings, filterwarnings

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors import SafetensorError
from torch import Tensor

from kedit_lab.edit.finetune import adapted
from kedit_lab.edit.weights import Change, put_back, write
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import own_chance
from kedit_lab.paths import room, temporary_beside

EXACT = 1e-12  # singular values under this share of the largest count as zero


def whole_model(lab: Lab, deltas: dict[str, Change], path: Path) -> Path:
    """The model with the changes in its weights, and its tokenizer; the folder appears whole or not at all."""

    def fill(folder: Path) -> None:
        originals = write(lab.arch, deltas)
        try:
            with catch_warnings():
                filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # they rest in them
                lab.model.save_pretrained(folder)
        finally:
            put_back(lab.arch, originals)
        lab.tokenizer.save_pretrained(folder)

    return new_folder(path, lab.nbytes, fill)


def adapter(lab: Lab, deltas: dict[str, Change], path: Path, rank: int) -> Path:
    """The changes as LoRA factors B A, each of its own least rank."""
    factors = {name.removesuffix(".weight"): narrow(delta.matrix()) for name, delta in deltas.items()}
    ranks = {name: left.shape[1] for name, (left, _) in factors.items()}
    for name, needed in ranks.items():
        if needed > rank:
            raise ValueError(f"ΔW of {name} has rank {needed}, over {rank}; raise rank, or export the whole model")
    config = LoraConfig(r=1, lora_alpha=1, target_modules=list(factors), rank_pattern=ranks, alpha_pattern=ranks,
                        fan_in_fan_out=any(lab.arch.weight(name).transposed for name in deltas),
                        task_type="CAUSAL_LM")  # fmt: skip

    @torch.no_grad()
    def fill(folder: Path) -> None:
        with own_chance(), adapted(lab, config) as wrapped:
            for name, (left, right) in factors.items():
                layer = wrapped.base_model.model.get_submodule(name)
                layer.lora_A["default"].weight.copy_(right.T)
                layer.lora_B["default"].weight.copy_(left)
            wrapped.save_pretrained(folder)

    return new_folder(path, 4 * sum(left.numel() + right.numel() for left, right in factors.values()), fill)


def narrow(matrix: Float[Tensor, "d_out d_k"]) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, "d_k rank"]]:
    """Factors of the least rank, their sizes balanced."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = s > EXACT * s[0]
    return u[:, kept] * s[kept].sqrt(), vh[kept].T * s[kept].sqrt()


def new_folder(path: Path, needed: int, fill: Callable[[Path], None]) -> Path:
    """Fill a folder with some ``needed`` bytes under a temporary name and move it into place. One that holds files
    already, or has no room, is refused."""
    if not path.name or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ValueError(f"{str(path)!r} exists and is not an empty folder; give a new one")
    room(path.parent, needed)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        fill(temporary)
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written ({error}); make room, or give another path") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
