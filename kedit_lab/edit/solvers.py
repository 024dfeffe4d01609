"""How residuals become a weight change: pure functions, each opening with its formula and its paper.

Keys and residuals hold one fact per row; the papers' columns are their transposes.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, cached_property
from math import sqrt

import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrf, dpotrs
from torch import Tensor

from kedit_lab.types import Delta, Dense

BLOCK = 128  # rows of a matrix that are mirrored together
PARTS = 64  # keys are added to a matrix d_k / PARTS at a time, in float64
SPREADS: dict[str, Callable[[int], float]] = {
    "1/m": lambda m: 1 / m,  # MEMIT: each of the m layers still to be edited takes an equal part
    "1/sqrt(m)": lambda m: 1 / sqrt(m),  # PMET
    "whole": lambda _m: 1.0,  # ROME, EMMET: each layer writes all that is missing
}


class Preserved:
    """λC of one layer, weighed in float64 and factored once; C as it is, or a function that makes or reads it anew."""

    def __init__(self, second_moment: Tensor | Callable[[], Tensor], lam: float) -> None:
        if not lam > 0:
            raise ValueError(f"lam is {lam}; the weight λ of the preserved keys must be positive")
        self.read, self.lam = reading(second_moment), lam

    @property
    def matrix(self) -> Float[Tensor, "d_k d_k"]:
        """λC in float64, made anew at every call: large, and the factor is mostly all that is needed."""
        return self.read().mul_(self.lam)

    def with_past(self, past: Float[Tensor, "d_k d_k"]) -> "Preserved":
        """λC + Σ k kᵀ over the keys of earlier batches, as in MEMIT's sequential form."""
        matrix = self.matrix
        return Preserved(matrix.add_(past.to(matrix)), 1.0)

    @cached_property
    def factor(self) -> Float[Tensor, "d_k d_k"]:
        """Cholesky factor of λC."""
        return cholesky(self.matrix)


def reading(second_moment: Tensor | Callable[[], Tensor]) -> Callable[[], Float[Tensor, "d_k d_k"]]:
    """A function that gives C in float64, the caller's to work in: a copy, or what a function makes anew."""
    if not callable(second_moment):
        return lambda: whole(second_moment)
    return lambda: second_moment().to(torch.float64, memory_format=torch.contiguous_format)


def whole(matrix: Tensor) -> Tensor:
    """A copy in float64, row by row, which LAPACK may work in."""
    return matrix.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def cholesky(matrix: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "d_k d_k"]:
    """Cholesky factor, in the matrix's own memory; with the smallest ridge that makes it exist where C lacks rank."""
    diagonal = matrix.diagonal().clone()
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):  # fewer tokens than d_k, summed in float32, need the last
        matrix.diagonal().copy_(diagonal + jitter * diagonal.mean())
        factor, failed = factored(matrix)
        if not failed:
            return factor
        mirror(matrix)
    raise ValueError("the second moment is not positive semi-definite; delete its cache file and compute it anew")


def factored(matrix: Float[Tensor, "d_k d_k"]) -> tuple[Float[Tensor, "d_k d_k"], bool]:
    """(lower factor, whether it failed) of a symmetric matrix; on a CPU in place; its upper half outlives a failure."""
    if matrix.is_cpu:
        _, failed = dpotrf(matrix.numpy().T, lower=0, clean=0, overwrite_a=1)
        return matrix if failed else matrix.tril_(), bool(failed)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor, bool(failed)


def mirror(matrix: Float[Tensor, "d_k d_k"]) -> None:
    """Copy the upper half to the lower one, some rows at a time: nothing as large as the matrix is made."""
    for start in range(0, len(matrix), BLOCK):
        rows, below = slice(start, start + BLOCK), slice(start + BLOCK, None)
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[below, rows] = matrix[rows, below].T


def divided(rows: Float[Tensor, "facts d_k"], factor: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "facts d_k"]:
    """A⁻¹ k for every key k, with the lower factor of A; on a CPU in the keys' own memory (float64, the caller's to
    lose), and without the copy of the factor that torch would make."""
    if not rows.is_cpu:
        return torch.cholesky_solve(rows.T, factor).T
    found, _ = dpotrs(factor.numpy().T, rows.numpy().T, lower=0, overwrite_b=1)
    return torch.from_numpy(found.T)


def ridge(
    keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: Preserved
) -> Delta | Dense:
    """Δ = R Kᵀ (λC + K Kᵀ)⁻¹ (MEMIT, Eq. 14): minimises ‖ΔK - R‖² + λ tr(Δ C Δᵀ). Float64 throughout.

    With fewer facts than key dimensions by the equal Woodbury form Δ = R (KᵀQK + I)⁻¹ KᵀQ with Q = (λC)⁻¹, which is
    cheaper, as factors; with more itself, from K Kᵀ and R Kᵀ, to which keys are added some at a time.
    """
    if len(keys) < keys.shape[1]:
        k, r = keys.to(preserved.factor), residuals.to(preserved.factor)
        spread = divided(whole(k), preserved.factor)
        inner = k @ spread.T + torch.eye(len(k), dtype=k.dtype, device=k.device)
        return Delta(r.T, torch.linalg.solve(inner, spread).T)
    matrix = preserved.matrix
    written = matrix.new_zeros(residuals.shape[1], keys.shape[1])
    for k, r in parts(keys, residuals):
        k = k.to(matrix)
        matrix.addmm_(k.T, k)
        written.addmm_(r.to(matrix).T, k)
    return Dense(divided(written, cholesky(matrix)), residuals.T)


def parts(keys: Float[Tensor, "facts d_k"], *others: Float[Tensor, "facts _"]) -> Iterator[tuple[Tensor, ...]]:
    """Keys, and what else there is of every fact, some facts at a time: what is made of them is small beside C."""
    size = max(1, keys.shape[1] // PARTS)
    return zip(*(rows.split(size) for rows in (keys, *others)), strict=True)


def equality(
    keys: Float[Tensor, "facts d_k"],
    residuals: Float[Tensor, "facts d_out"],
    preserved: Preserved,
    met: Float[Tensor, "facts d_k"],
) -> Delta | Dense:
    """Δ = r uᵀ / (k_metᵀ u) with u = C⁻¹ k (ROME, Eq. 2): after it (W + Δ) k_met is exactly the target; rank one.

    Facts one after another: what earlier ones wrote at a later one's key is taken off its residual, so that after its
    own write it is met exactly (and changed by those behind it). As no key depends on this weight, the whole sequence
    is one triangular system; with no fewer facts than key dimensions one of some facts at a time, behind those before.
    ROME's code takes the averaged key for u, the bare one for ``met``; R-ROME one for both.
    """
    if len(keys) < keys.shape[1]:
        return in_turn(keys, residuals, preserved.factor, met)
    change, written = preserved.factor.new_zeros(residuals.shape[1], keys.shape[1]), torch.empty_like(residuals)
    for k, r, m, own in parts(keys, residuals, met, written):
        delta = in_turn(k, r.to(change) - m.to(change) @ change.T, preserved.factor, m)
        change.addmm_(delta.left, delta.right.T)
        own.copy_(delta.left.T)
    return Dense(change, written.T)


def in_turn(
    keys: Float[Tensor, "facts d_k"],
    residuals: Float[Tensor, "facts d_out"],
    factor: Float[Tensor, "d_k d_k"],
    met: Float[Tensor, "facts d_k"],
) -> Delta:
    """The triangular system of ``equality``, from the lower factor of C."""
    r, m = residuals.to(factor), met.to(factor)
    u = divided(whole(keys.to(r.device)), factor).T
    gain = m @ u
    own = gain.diagonal()
    written = torch.linalg.solve_triangular(gain / own, r, upper=False, unitriangular=True)
    return Delta(written.T, u / own)


def relaxed(
    keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: Preserved, mu: float
) -> Delta | Dense:
    """Δ = R D⁻¹ Kᵀ (αC)⁻¹ with D = Kᵀ (αC)⁻¹ K + μI (EMMET): equality constraints, relaxed by μ.

    Equal to ``ridge`` with λ = α·μ, which it is with no fewer facts than key dimensions; with μ = 0 and dependent keys
    the pseudo-inverse of D is taken.
    """
    if mu > 0 and len(keys) >= keys.shape[1]:
        return ridge(keys, residuals, Preserved(preserved.read, mu * preserved.lam))
    k, r = keys.to(preserved.factor), residuals.to(preserved.factor)
    spread = divided(whole(k), preserved.factor)
    inner = k @ spread.T + mu * torch.eye(len(k), dtype=k.dtype, device=k.device)
    solved = torch.linalg.solve(inner, spread) if mu > 0 else torch.linalg.pinv(inner, hermitian=True) @ spread
    return Delta(r.T, solved.T)


class NullSpace:
    """The null space of a layer's C, where nothing that is preserved has a component, and the keys of earlier batches.

    ``basis`` U holds the eigenvectors of C with eigenvalues under ``threshold`` as columns, so P = U Uᵀ; ``past`` is
    S = Σ k kᵀ over the keys of earlier batches, or None where there are none. C as it is, or a function that makes or
    reads it anew.
    """

    def __init__(self, second_moment: Tensor | Callable[[], Tensor], threshold: float, gamma: float) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma is {gamma}; the weight γ of the identity must be positive")
        self.gamma = gamma
        self.past: Float[Tensor, "d_k d_k"] | None = None
        self.threshold, self.read = threshold, reading(second_moment)
        self.find = cache(lambda: spared(self.read, threshold))  # large: found when it is needed, by all copies once
        if exceeds(self.read, threshold):
            self.find()  # to say so now

    @property
    def basis(self) -> Float[Tensor, "d_k null"]:
        """U; a ValueError if nothing is under the threshold."""
        return self.find()

    def with_past(self, past: Float[Tensor, "d_k d_k"]) -> "NullSpace":
        """The same null space with earlier batches' keys in the bracket."""
        other = copy(self)
        other.past = past if self.past is None else self.past + past
        return other


def exceeds(read: Callable[[], Tensor], threshold: float) -> bool:
    """Whether all eigenvalues of C are over a threshold: its diagonal is, and C - threshold·I has a Cholesky factor."""
    shifted = read()
    shifted.diagonal().sub_(threshold)
    return bool(shifted.diagonal().min() >= 0) and not factored(shifted)[1]


def spared(read: Callable[[], Tensor], threshold: float) -> Float[Tensor, "d_k null"]:
    """The eigenvectors of C with eigenvalues under the threshold; C itself is let go first."""
    spectrum, vectors = eigen(read())
    if not spectrum[0] < threshold:
        raise ValueError(
            f"no eigenvalue of C is under threshold {threshold} (smallest: {float(spectrum[0]):.3g}); raise it"
        )
    return vectors[:, spectrum < threshold]


def eigen(matrix: Float[Tensor, "d_k d_k"]) -> tuple[Float[Tensor, " d_k"], Float[Tensor, "d_k d_k"]]:
    """(eigenvalues, ascending, and eigenvectors) of a symmetric matrix in float64; on a CPU its memory is worked in."""
    if not matrix.is_cpu:
        return torch.linalg.eigh(matrix)
    spectrum, vectors = eigh(matrix.numpy().T, overwrite_a=True)
    return torch.from_numpy(spectrum), torch.from_numpy(vectors)


def null_space(
    keys: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d_out"], preserved: NullSpace
) -> Delta | Dense:
    """Δ = R Kᵀ P (P (K Kᵀ + S) P + γI)⁻¹ (AlphaEdit, Eq. 14): ΔP = Δ, so what C spans is untouched.

    Solved inside the null space, where the bracket is symmetric: Δ = R KᵀU (UᵀKKᵀU + UᵀSU + γI)⁻¹ Uᵀ. Float64; as
    factors, or itself with more facts than keys have dimensions.
    """
    basis = preserved.basis
    bracket = basis.new_zeros(basis.shape[1], basis.shape[1])
    if preserved.past is not None:
        bracket += basis.T @ preserved.past.to(basis) @ basis
    bracket.diagonal().add_(preserved.gamma)
    if len(keys) < keys.shape[1]:
        k = keys.to(basis) @ basis
        factor = cholesky(bracket.addmm_(k.T, k))
        return Delta(residuals.to(k).T, basis @ divided(k, factor).T)
    written = basis.new_zeros(residuals.shape[1], basis.shape[1])
    for k, r in parts(keys, residuals):
        k = k.to(basis) @ basis
        bracket.addmm_(k.T, k)
        written.addmm_(r.to(basis).T, k)
    return Dense(divided(written, cholesky(bracket)) @ basis.T, residuals.T)


SOLVERS: dict[str, Callable[..., Delta | Dense]] = {
    "ridge": ridge,
    "null-space": null_space,
    "equality": equality,
    "relaxed": relaxed,
}
