"""The geometry of keys and residuals: cosine, average key distance, misalignment."""

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 512  # facts whose view of all others is held at once
TEMPERATURE = 0.07  # of the softmax that turns cosines into distributions (EAMET's code)


def cosine(
    rows: Float[Tensor, "facts width"], others: Float[Tensor, "others width"] | None = None
) -> Float[Tensor, "facts others"]:
    """Cosine similarity of every row with every row (of ``others``, if given), in float32 or better."""
    unit = lambda x: torch.nn.functional.normalize(x.float() if x.dtype != torch.float64 else x, dim=1)  # noqa: E731
    return unit(rows) @ unit(rows if others is None else others).T


def akd(keys: Float[Tensor, "facts d_k"]) -> float:
    """Average key distance: the mean of ‖k_a - k_b‖₂ over unordered pairs (MEMIT-Merge, Eq. 4); zero for one fact."""
    if len(keys) < 2:
        return 0.0
    # distances from differences, not from dot products, which lose near-identical keys to rounding
    return float(torch.nn.functional.pdist(keys.double()).mean())


def misalignment(
    residuals: Float[Tensor, "facts d_model"], keys: Float[Tensor, "facts d_k"], temperature: float = TEMPERATURE
) -> Float[Tensor, " facts"]:
    """A(i) = KL(P_r ‖ P_k): how differently fact i's residual and key see the other facts (EAMET, section 4).

    P is the softmax over j ≠ i of the cosines divided by ``temperature``; the paper leaves the normalisation open and
    this is its code's, so compare values only at one temperature. Of two facts, which have one other each, it is always
    zero. Raises ValueError for fewer than two facts, and unless there is a residual for every key.
    """
    if len(residuals) != len(keys):
        raise ValueError(f"{len(residuals)} residuals for {len(keys)} keys; give one of each per fact")
    if len(keys) < 2:
        raise ValueError(f"misalignment compares facts with each other; {len(keys)} given, at least 2 needed")
    found = []
    for own in torch.arange(len(keys), device=keys.device).split(BLOCK):
        off = own[:, None] != torch.arange(len(keys), device=keys.device)
        views = [cosine(x[own].double(), x.double())[off].view(len(own), -1) for x in (residuals, keys)]
        logp, logq = ((view / temperature).log_softmax(1) for view in views)
        found.append((logp.exp() * (logp - logq)).sum(1))
    return torch.cat(found)
