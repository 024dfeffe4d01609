"""How residuals become a weight change: pure functions, each opening with its formula and its paper.

Keys and residuals hold one fact per row; the papers' columns are their transposes.
"""

from collections.abc import Callable
from functools import cached_property
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.types import Delta

SPREADS: dict[str, Callable[[int], float]] = {
    "1/m": lambda m: 1 / m,  # MEMIT: each of the m layers still to be edited takes an equal part
    "1/sqrt(m)": lambda m: 1 / sqrt(m),  # PMET
    "whole": lambda _m: 1.0,  # ROME, EMMET: each layer writes all that is missing
}


class Preserved:
    """λC of one layer in float64, factored once: what an edit of that layer should leave alone."""

    def __init__(self, second_moment: Float[Tensor, "d_k d_k"], lam: float) -> None:
        if not lam > 0:
            raise ValueError(f"lam is {lam}; the weight λ of the preserved keys must be positive")
        self.matrix = lam * second_moment.double()

    @cached_property
    def factor(self) -> Float[Tensor, "d_k d_k"]:
        """Cholesky factor of λC."""
        return cholesky(self.matrix)


def cholesky(matrix: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "d_k d_k"]:
    """Cholesky factor; where statistics are rank-deficient, with the smallest ridge that makes it exist."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for jitter in (0.0, 1e-10, 1e-8, 1e-6):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * matrix.diagonal().mean() * eye)
        if not failed:
            return factor
    raise ValueError("the second moment is not positive semi-definite; delete its cache file and compute it anew")


def ridge(keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: Preserved) -> Delta:
    """Δ = R Kᵀ (λC + K Kᵀ)⁻¹ (MEMIT, Eq. 14): minimises ‖ΔK - R‖² + λ tr(Δ C Δᵀ). Float64 throughout.

    With fewer facts than key dimensions the equal Woodbury form Δ = R (KᵀQK + I)⁻¹ KᵀQ with Q = (λC)⁻¹ is cheaper.
    """
    k, r = keys.to(preserved.matrix), residuals.to(preserved.matrix)
    if len(k) < k.shape[1]:
        spread = torch.cholesky_solve(k.T, preserved.factor)
        inner = k @ spread + torch.eye(len(k), dtype=k.dtype, device=k.device)
        return Delta(r.T, torch.linalg.solve(inner, spread.T).T)
    factor = cholesky(preserved.matrix + k.T @ k)
    return Delta(r.T, torch.cholesky_solve(k.T, factor))


SOLVERS = {"ridge": ridge}
