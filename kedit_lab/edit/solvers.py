"""How residuals become a weight change: pure functions, each opening with its formula and its paper.

Keys and residuals hold one fact per row; the papers' columns are their transposes.
"""

from collections.abc import Callable
from copy import copy
from functools import cached_property
from math import sqrt

import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from kedit_lab.types import Delta

SPREADS: dict[str, Callable[[int], float]] = {
    "1/m": lambda m: 1 / m,  # MEMIT: each of the m layers still to be edited takes an equal part
    "1/sqrt(m)": lambda m: 1 / sqrt(m),  # PMET
    "whole": lambda _m: 1.0,  # ROME, EMMET: each layer writes all that is missing
}


class Preserved:
    """λC of one layer, weighed in float64 and factored once; C as it is, or how to read it when its turn comes."""

    def __init__(self, second_moment: Tensor | Callable[[], Tensor], lam: float) -> None:
        if not lam > 0:
            raise ValueError(f"lam is {lam}; the weight λ of the preserved keys must be positive")
        self.read = second_moment if callable(second_moment) else lambda: second_moment
        self.lam = lam

    @property
    def matrix(self) -> Float[Tensor, "d_k d_k"]:
        """λC in float64, made anew at every call: large, and the factor is mostly all that is needed."""
        return self.read().to(torch.float64, copy=True).mul_(self.lam)

    def with_past(self, past: Float[Tensor, "d_k d_k"]) -> "Preserved":
        """λC + Σ k kᵀ over the keys of earlier batches, as in MEMIT's sequential form."""
        matrix = self.matrix
        return Preserved(matrix.add_(past.to(matrix)), 1.0)

    @cached_property
    def factor(self) -> Float[Tensor, "d_k d_k"]:
        """Cholesky factor of λC."""
        return cholesky(self.matrix)


def cholesky(matrix: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "d_k d_k"]:
    """Cholesky factor, in the matrix's own memory; with the smallest ridge that makes it exist where C lacks rank."""
    diagonal = matrix.diagonal().clone()
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):  # fewer tokens than d_k, summed in float32, need the last
        matrix.diagonal().copy_(diagonal + jitter * diagonal.mean())
        factor, failed = factored(matrix)
        if not failed:
            return factor
        matrix.copy_(matrix.triu(1) + matrix.triu(1).T)
    raise ValueError("the second moment is not positive semi-definite; delete its cache file and compute it anew")


def factored(matrix: Float[Tensor, "d_k d_k"]) -> tuple[Float[Tensor, "d_k d_k"], bool]:
    """(lower factor, whether it failed) of a symmetric matrix; on a CPU in place; its upper half outlives a failure."""
    if matrix.is_cpu:
        _, failed = dpotrf(matrix.numpy().T, lower=0, clean=0, overwrite_a=1)
        return matrix if failed else matrix.tril_(), bool(failed)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor, bool(failed)


def ridge(keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: Preserved) -> Delta:
    """Δ = R Kᵀ (λC + K Kᵀ)⁻¹ (MEMIT, Eq. 14): minimises ‖ΔK - R‖² + λ tr(Δ C Δᵀ). Float64 throughout.

    With fewer facts than key dimensions the equal Woodbury form Δ = R (KᵀQK + I)⁻¹ KᵀQ with Q = (λC)⁻¹ is cheaper.
    """
    if len(keys) < keys.shape[1]:
        k, r = keys.to(preserved.factor), residuals.to(preserved.factor)
        spread = torch.cholesky_solve(k.T, preserved.factor)
        inner = k @ spread + torch.eye(len(k), dtype=k.dtype, device=k.device)
        return Delta(r.T, torch.linalg.solve(inner, spread.T).T)
    matrix = preserved.matrix
    k, r = keys.to(matrix), residuals.to(matrix)
    return Delta(r.T, torch.cholesky_solve(k.T, cholesky(matrix.addmm_(k.T, k))))


def equality(
    keys: Float[Tensor, "facts d_k"],
    residuals: Float[Tensor, "facts d_out"],
    preserved: Preserved,
    met: Float[Tensor, "facts d_k"],
) -> Delta:
    """Δ = r uᵀ / (k_metᵀ u) with u = C⁻¹ k (ROME, Eq. 2): after it (W + Δ) k_met is exactly the target; rank one.

    Facts one after another: what earlier ones wrote at a later one's key is taken off its residual, so that after its
    own write it is met exactly (and changed by those behind it). As no key depends on this weight, the whole sequence
    is one triangular system. ROME's code takes the averaged key for u, the bare one for ``met``; R-ROME one for both.
    """
    k, r, m = (rows.to(preserved.factor) for rows in (keys, residuals, met))
    u = torch.cholesky_solve(k.T, preserved.factor)
    gain = m @ u
    own = gain.diagonal()
    written = torch.linalg.solve_triangular(gain / own, r, upper=False, unitriangular=True)
    return Delta(written.T, u / own)


def relaxed(
    keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: Preserved, mu: float
) -> Delta:
    """Δ = R D⁻¹ Kᵀ (αC)⁻¹ with D = Kᵀ (αC)⁻¹ K + μI (EMMET): equality constraints, relaxed by μ.

    Equal to ``ridge`` with λ = α·μ; with μ = 0 and dependent keys the pseudo-inverse of D is taken.
    """
    k, r = keys.to(preserved.factor), residuals.to(preserved.factor)
    spread = torch.cholesky_solve(k.T, preserved.factor)
    inner = k @ spread + mu * torch.eye(len(k), dtype=k.dtype, device=k.device)
    solved = torch.linalg.solve(inner, spread.T) if mu > 0 else torch.linalg.pinv(inner, hermitian=True) @ spread.T
    return Delta(r.T, solved.T)


class NullSpace:
    """The null space of a layer's C, where nothing that is preserved has a component, and the keys of earlier batches.

    ``basis`` U holds the eigenvectors of C with eigenvalues under ``threshold`` as columns, so P = U Uᵀ; ``inner`` is
    γI + Uᵀ S U, with S = Σ k kᵀ over the keys of earlier batches.
    """

    def __init__(self, second_moment: Float[Tensor, "d_k d_k"], threshold: float, gamma: float) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma is {gamma}; the weight γ of the identity must be positive")
        spectrum, vectors = torch.linalg.eigh(second_moment.double())
        self.basis = vectors[:, spectrum < threshold]
        if not self.basis.shape[1]:
            raise ValueError(
                f"no eigenvalue of C is under threshold {threshold} (smallest: {float(spectrum[0]):.3g}); raise it"
            )
        self.inner = gamma * torch.eye(self.basis.shape[1], dtype=self.basis.dtype, device=self.basis.device)

    def with_past(self, past: Float[Tensor, "d_k d_k"]) -> "NullSpace":
        """The same null space with earlier batches' keys in the bracket."""
        other = copy(self)
        other.inner = self.inner + self.basis.T @ past.to(self.basis) @ self.basis
        return other


def null_space(
    keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: NullSpace
) -> Delta:
    """Δ = R Kᵀ P (P (K Kᵀ + S) P + γI)⁻¹ (AlphaEdit, Eq. 14): ΔP = Δ, so what C spans is untouched.

    Solved inside the null space, where the bracket is symmetric: Δ = R KᵀU (UᵀKKᵀU + UᵀSU + γI)⁻¹ Uᵀ. Float64.
    """
    k = keys.to(preserved.basis) @ preserved.basis
    right = torch.cholesky_solve(k.T, cholesky(preserved.inner + k.T @ k))
    return Delta(residuals.to(k).T, preserved.basis @ right)


SOLVERS: dict[str, Callable[..., Delta]] = {
    "ridge": ridge,
    "null-space": null_space,
    "equality": equality,
    "relaxed": relaxed,
}
