"""What is done to a weight change after it was solved for; usable behind every recipe.

RECT keeps the entries that change their weight most, PRUNE restrains singular values that outgrow the weight's own.
"""

from math import log

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.weights import Change
from kedit_lab.model.lab import checksum
from kedit_lab.types import Delta, Dense, within


def largest(scores: Float[Tensor, "..."], share: float) -> Tensor:
    """A mask of the ``int(share · n)`` largest of n scores (earlier entries first among equals)."""
    count = int(share * scores.numel())
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = float(np.partition(scores.flatten().cpu().numpy(), -count)[-count])
    mask = ~(scores <= least).flatten()  # what is no number is kept, to be seen
    equal = (scores == least).flatten().nonzero()[:, 0]
    mask[equal[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


def rect_delta(delta: Change, weight: Float[Tensor, "d_out d_k"], keep: float) -> Dense:
    """The share ``keep`` of ΔW's entries with the largest |ΔW / (W + 1e-8)|, the rest zero (RECT; AlphaEdit's code)."""
    change = delta.matrix()
    scores = weight.to(change, copy=True).add_(1e-8)
    torch.div(change, scores, out=scores).abs_()
    return Dense(change.masked_fill(~largest(scores, keep), 0))


def prune_delta(delta: Change, weight: Float[Tensor, "d_out d_k"], log_base: float) -> Change:
    """Singular values σ̂ of ΔW above σ, the largest of W, become log_a(σ̂) - log_a(σ) + σ (PRUNE, Eq. 9)."""
    bound = float(torch.linalg.matrix_norm(weight.double(), 2))
    change = delta.matrix()
    u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
    if s[0] <= bound:
        return delta
    restrained = torch.where(s > bound, (s / bound).clamp_min(1e-300).log() / log(log_base) + bound, s)
    kept = s > 1e-12 * s[0]
    return Delta((u * restrained)[:, kept], vh[kept].T)


def rect(edit: Edit, keep: float = 0.4) -> Edit:
    """An edit with only the entries that change their weight most, relatively (RECT, Gu et al. 2024; see
    ``rect_delta``). Raises ValueError for a ``keep`` outside 0 to 1."""
    if not within(keep, 0, 1):
        raise ValueError(f"keep is {keep!r}; it is a share between 0 and 1")
    weights = {name: originals(edit, name) for name in edit.deltas}
    return edit.with_deltas(
        {name: rect_delta(delta, weights[name], keep) for name, delta in edit.deltas.items()},
        f"rect({edit.recipe.name})",
    )


def prune(edit: Edit, log_base: float = 2.718281828459045) -> Edit:
    """An edit whose singular values stay close to those of the weights it changes (PRUNE, Ma et al. 2025, Eq. 9; see
    ``prune_delta``). Raises ValueError unless ``log_base`` is finite and exceeds 1."""
    if not within(log_base, 1) or log_base == 1:
        raise ValueError(f"log_base is {log_base!r}; the base of the logarithm must exceed 1")
    weights = {name: originals(edit, name) for name in edit.deltas}
    return edit.with_deltas(
        {name: prune_delta(delta, weights[name], log_base) for name, delta in edit.deltas.items()},
        f"prune({edit.recipe.name})",
    )


def originals(edit: Edit, name: str) -> Float[Tensor, "d_out d_k"]:
    """A weight as it was before the edit, in the orientation v = W k; a ValueError where another edit stands in it."""
    projection = edit.lab.arch.weight(name)
    known = edit.found.get(name) if edit.originals is None else None
    if known is not None and checksum(projection.module.weight) != known:
        raise ValueError(f"{name} is not as it was when this edit was computed; undo the edit that is applied")
    return projection.stored((edit.originals or {}).get(name, projection.module.weight))
