"""β coefficients: how much of every fact's residual arrives at another fact's key (EAMET, section 3 and Fig. 3)."""

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.types import within


def betas(
    keys: Float[Tensor, "facts d_k"], second_moment: Float[Tensor, "d_k d_k"] | None = None, lam: float = 0.0
) -> Float[Tensor, "facts facts"]:
    """β_ij = k_jᵀ (λC + KKᵀ)⁻¹ k_i, so that a ridge edit writes ΔW k_i = Σ_j β_ij r_j (EAMET, section 3).

    With ``lam=0`` it is the pseudo-inverse form β_ij = k_jᵀ (KKᵀ)⁺ k_i, in which C has no part: the identity for
    independent keys, 1/n inside a cluster of n identical ones. ``lam > 0`` without a ``second_moment`` uses the
    identity for C. Computed in float64.
    Raises ValueError for another ``lam``, NaN or infinite values, a C that does not fit the keys, and a singular sum.
    """
    if not within(lam, 0):
        raise ValueError(f"lam is {lam!r}; the ridge weight must be zero or positive, and finite")
    width = keys.shape[1]
    if second_moment is not None and second_moment.shape != (width, width):
        raise ValueError(f"second_moment is {tuple(second_moment.shape)}; these keys need {width} x {width}")
    if not all(given.isfinite().all() for given in (keys, second_moment) if given is not None):
        raise ValueError("keys or second_moment hold NaN or infinite values; load an undamaged checkpoint")
    k = keys.double()
    gram = k @ k.T
    if lam == 0:
        return gram @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-9)
    covariance = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
    if second_moment is not None:
        covariance = second_moment.to(k)
    found, failed = torch.linalg.solve_ex(lam * covariance + k.T @ k, k.T)
    if failed:
        raise ValueError("λC + KKᵀ is singular; give a second moment of full rank, or lam=0 for the pseudo-inverse")
    return k @ found
