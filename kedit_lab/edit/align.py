"""EAMET's alignment: a fact's residual should see the other residuals as its key sees the other keys.

Facts whose keys are close get residuals that are close, so that what one key must carry for several facts adds up
instead of cancelling.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit_lab.edit.groups import BLOCK
from kedit_lab.edit.recipe import Recipe
from kedit_lab.model.lab import chunks

INSIDE = 1e-8  # inside the logarithms of the divergence, as in the reference code


def unit(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(INSIDE)


@dataclass(frozen=True)
class Wanted:
    """What the key cosines of a block's facts ask of its residuals, the same at every step.

    ``share`` is their softmax at the temperature τ and ``sure`` Σ p log p of every row; ``nearest`` are the others with
    the closest keys, ``cosine`` those keys' and ``weight`` their softmax.
    """

    temperature: float
    share: Float[Tensor, "rows others"]
    sure: Float[Tensor, " rows"]
    nearest: Int[Tensor, "rows top"]
    cosine: Float[Tensor, "rows top"]
    weight: Float[Tensor, "rows top"]

    @classmethod
    def of(cls, keys: Float[Tensor, "rows others"], temperature: float, top: int) -> "Wanted":
        share = (keys / temperature).softmax(1)
        close = keys.topk(min(top, keys.shape[1]), dim=1)
        cosine = close.values.masked_fill(close.values.isinf(), 0.0)  # fewer others than ``top``: weight zero
        weight = (close.values / temperature).softmax(1)
        return cls(temperature, share, (share * (share + INSIDE).log()).sum(1), close.indices, cosine, weight)

    def divergence(self, residuals: Float[Tensor, "rows others"]) -> Float[Tensor, " rows"]:
        """KL(P_keys ‖ P_residuals) of the softmax of cosines (EAMET's code; its text has the other direction)."""
        q = (residuals / self.temperature).softmax(1)
        return self.sure - (self.share * (q + INSIDE).log()).sum(1)

    def error(self, residuals: Float[Tensor, "rows others"]) -> Float[Tensor, " rows"]:
        """Σ w (s - c)² over the nearest others, w the softmax of their key cosines."""
        return (self.weight * (self.cosine - residuals.gather(1, self.nearest)) ** 2).sum(1)


@dataclass
class Alignment:
    """Keys of all groups and the directions of the residuals found so far; ``ahead`` gives the next block's view.

    ``wanted`` is how the block's keys see those before it and its own, and ``unseen`` (block x others) who is not
    seen; a row that sees nobody has an ``alone``. ``kin`` are close keys of a block whose groups see one another.
    """

    recipe: Recipe
    keys: Float[Tensor, "groups d_k"]
    residuals: Float[Tensor, "known d_model"] | None = None
    known: tuple[int, ...] = ()
    wanted: Wanted | None = None
    unseen: Bool[Tensor, "block others"] | None = None
    alone: Bool[Tensor, " block"] | None = None
    kin: Bool[Tensor, "block block"] | None = None

    @classmethod
    def of(cls, keys: Float[Tensor, "groups d_k"], recipe: Recipe) -> "Alignment":
        return cls(recipe, unit(keys))

    def turns(self) -> list[int]:
        """When each group's residual is to be found: behind those of all earlier groups that it is to follow closely.

        0 where no earlier key's cosine exceeds the recipe's ``similarity``, else one more than the latest such group's.
        All are 0 where groups see later ones too, or where the recipe says how many of them are found at once.
        """
        turns = torch.zeros(len(self.keys), dtype=torch.long)
        if self.recipe.sees == "earlier" and not self.recipe.block:
            for start in range(0, len(self.keys), BLOCK):
                close = (self.keys[start : start + BLOCK] @ self.keys.T > self.recipe.similarity).cpu()
                for i, seen in enumerate(close, start):
                    turns[i] = (turns[:i] + 1)[seen[:i]].amax() if seen[:i].any() else 0
        return turns.tolist()

    def ahead(self, block: list[int]) -> "Alignment":
        """The alignment of a block that is optimised at once, against earlier residuals and its own as they stand.

        Each sees the groups found before it, wherever they stand in the list, and those before it in the block; if the
        recipe's ``sees`` is "all", those behind it in the block too.
        """
        mine, seen = self.keys[block], [*self.known, *block]
        closeness = torch.cat([mine @ self.keys[some].T for some in chunks(seen, BLOCK)], 1)  # a copy of all is large
        own = torch.arange(len(self.known), closeness.shape[1], device=closeness.device)[:, None]
        at = torch.arange(closeness.shape[1], device=closeness.device)
        unseen = at == own if self.recipe.sees == "all" else at >= own
        alone = unseen.all(1)
        unseen &= ~alone[:, None]  # numbers for those who see nobody, counted as zero by the loss
        wanted = Wanted.of(closeness.masked_fill(unseen, float("-inf")), self.recipe.temperature, self.recipe.top)
        kin = closeness[:, len(self.known) :] > self.recipe.similarity if self.recipe.sees == "all" else None
        return replace(self, wanted=wanted, unseen=unseen, alone=alone, kin=kin)

    def keep(self, block: list[int], residuals: Float[Tensor, "block d_model"]) -> None:
        """Remember a finished block's residuals."""
        earlier = [] if self.residuals is None else [self.residuals]
        self.residuals, self.known = torch.cat([*earlier, unit(residuals)]), (*self.known, *block)

    def ended(self, there: Bool[Tensor, " block"]) -> Bool[Tensor, " block"]:
        """Which groups of a block have nothing left to do: those that are there, and whose kin are there too."""
        return there if self.kin is None else there & ~(self.kin & ~there).any(1)

    def loss(self, delta: Float[Tensor, "block d_model"]) -> Float[Tensor, " block"]:
        """align_kl · KL + align_mse · MSE per group (EAMET, Eqs. 12-14, as its code has them); zero without others.

        Within its block a group sees the residuals of the same step.
        """
        now = unit(delta)
        others = now.detach() if self.residuals is None else torch.cat([self.residuals, now.detach()])
        c = now @ others.T
        kl = self.wanted.divergence(c.masked_fill(self.unseen, float("-inf")))
        mse = self.wanted.error(c.masked_fill(self.unseen, 0.0))
        return torch.where(self.alone, 0.0, self.recipe.align_kl * kl + self.recipe.align_mse * mse)
