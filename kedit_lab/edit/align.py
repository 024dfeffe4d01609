"""EAMET's alignment: a fact's residual should see the other residuals as its key sees the other keys.

Facts whose keys are close get residuals that are close, so that what one key must carry for several facts adds up
instead of cancelling.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit.recipe import Recipe

INSIDE = 1e-8  # inside the logarithms of the divergence, as in the reference code


def unit(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(INSIDE)


def divergence(
    residuals: Float[Tensor, "rows others"], keys: Float[Tensor, "rows others"], temperature: float
) -> Float[Tensor, " rows"]:
    """KL(P_keys ‖ P_residuals) of the softmax of cosines (EAMET's code; its text has the other direction)."""
    q = (residuals / temperature).softmax(1)
    p = (keys / temperature).softmax(1)
    return (p * ((p + INSIDE) / (q + INSIDE)).log()).sum(1)


def weighted_error(
    residuals: Float[Tensor, "rows others"], keys: Float[Tensor, "rows others"], temperature: float, top: int
) -> Float[Tensor, " rows"]:
    """Σ w (s - c)² over the ``top`` others with the closest keys, w the softmax of their key cosines."""
    nearest = keys.topk(min(top, keys.shape[1]), dim=1)
    weight = (nearest.values / temperature).softmax(1)
    wanted = nearest.values.masked_fill(nearest.values.isinf(), 0.0)  # fewer others than ``top``: weight zero
    return (weight * (wanted - residuals.gather(1, nearest.indices)) ** 2).sum(1)


@dataclass
class Alignment:
    """Keys of all groups and the directions of the residuals found so far; ``ahead`` gives the next block's view.

    ``closeness`` is how the block's keys see those before it and its own: the one matrix, a block wide, that a pass
    needs; it is the same at every pass.
    """

    recipe: Recipe
    keys: Float[Tensor, "groups d_k"]
    residuals: Float[Tensor, "known d_model"] | None = None
    known: tuple[int, ...] = ()
    closeness: Float[Tensor, "block others"] | None = None

    @classmethod
    def of(cls, keys: Float[Tensor, "groups d_k"], recipe: Recipe) -> "Alignment":
        return cls(recipe, unit(keys))

    def ahead(self, block: list[int]) -> "Alignment":
        """The alignment of a block that is optimised at once, against earlier residuals and its own as they stand."""
        closeness = self.keys[block] @ self.keys[[*self.known, *block]].T
        return replace(self, closeness=closeness)

    def keep(self, block: list[int], residuals: Float[Tensor, "block d_model"]) -> None:
        """Remember a finished block's residuals."""
        earlier = [] if self.residuals is None else [self.residuals]
        self.residuals, self.known = torch.cat([*earlier, unit(residuals)]), (*self.known, *block)

    def loss(self, delta: Float[Tensor, "block d_model"]) -> Float[Tensor, " block"]:
        """align_kl · KL + align_mse · MSE per group (EAMET, Eqs. 12-14, as its code has them); zero without others.

        Each sees the groups before it, within its block with the residuals of the same pass; if the recipe's ``sees``
        is "all", those behind it in the block too.
        """
        now = unit(delta)
        c = now @ (now.detach() if self.residuals is None else torch.cat([self.residuals, now.detach()])).T
        own = torch.arange(len(self.known), c.shape[1], device=c.device)[:, None]
        at = torch.arange(c.shape[1], device=c.device)
        unseen = at == own if self.recipe.sees == "all" else at >= own
        alone = unseen.all(1)
        unseen &= ~alone[:, None]  # numbers for those who see nobody, counted as zero below
        c, s = c.masked_fill(unseen, float("-inf")), self.closeness.masked_fill(unseen, float("-inf"))
        tau = self.recipe.temperature
        kl = divergence(c, s, tau)
        mse = weighted_error(c.masked_fill(unseen, 0.0), s, tau, self.recipe.top)
        return torch.where(alone, 0.0, self.recipe.align_kl * kl + self.recipe.align_mse * mse)
