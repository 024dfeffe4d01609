"""The search for the target values of one batch: gradient descent on δ, all groups at once, over the tail of the pass.

δ is added to a block's output (MEMIT), to its MLP's (ROME), or one to its attention's and one to its MLP's (PMET).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kedit_lab.edit.align import Alignment
from kedit_lab.edit.bundles import Asked, Bundle, folded, staying
from kedit_lab.edit.journal import Found
from kedit_lab.edit.recipe import Recipe
from kedit_lab.model.hooks import at
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.past import Known, waste
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import by_length

AGAIN = 0.5  # share of a pass's rows still sought under which they run again alone, sooner than all of them back
LONG = 100.0  # norm of a hidden state from which EAMET's code starts at zero
SETTLED_KL = 0.01  # weighted KL under which PMET's code ends once the target is the arg-max
Watch = Callable[[int, Tensor], object]  # of the search: Adam's step, and δ (groups x d_model) as it stands


def at_lookup(tails: Sequence[Tail], parts: Sequence[Sequence[int]],
              rows: Sequence[Asked]) -> Float[Tensor, "1 groups d_model"]:  # fmt: skip
    """What enters a tail at the lookup token of every group's first row, the bare prompt of its first member."""
    hidden = torch.cat([tail.hidden[:, 0] for tail in tails]).float()
    place = {row: at for at, row in enumerate(row for part in parts for row in part)}
    first = {a.group: i for i, a in reversed(list(enumerate(rows)))}
    return hidden[[place[first[g]] for g in sorted(first)]][None]


@dataclass
class Variable:
    """δ of every written part and group, held in units of each group's step size so that one Adam serves all."""

    units: Float[Tensor, "parts groups d_model"]
    scale: Float[Tensor, "parts groups 1"]
    bound: Float[Tensor, "parts groups 1"]
    basis: Float[Tensor, "d_model span"] | None = None

    @classmethod
    def of(cls, h: Float[Tensor, "parts groups d_model"], norms: Tensor | None, recipe: Recipe) -> "Variable":
        length = h.norm(dim=2, keepdim=True)
        along = length if norms is None else norms.expand(len(h), -1)[..., None]
        scale = recipe.lr * (length / h.shape[2] ** 0.5 if recipe.lr_unit == "hidden" else torch.ones_like(length))
        bound = recipe.clamp * (along if recipe.bound == "key" else length)
        start = torch.zeros_like(h)
        if recipe.start == "hidden":  # EAMET's code; hidden states longer than 100 start at zero there
            start = torch.where(length < LONG, h / length * along, start)
            start = start * (bound / start.norm(dim=2, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        basis = subspace(h.shape[2], recipe.span).to(h) if recipe.span else None
        units = start / scale.clamp_min(1e-30)
        units = (units if basis is None else units @ basis @ basis.T).requires_grad_()
        return cls(units, scale, bound, basis)

    @property
    def delta(self) -> Float[Tensor, "parts groups d_model"]:
        return self.scale * self.units

    @torch.no_grad()
    def settle(self, before: Tensor, active: Bool[Tensor, " groups"]) -> None:
        """Project every δ onto its subspace and ball, and undo the step of groups that have left."""
        if self.basis is not None:
            self.units.copy_(self.units @ self.basis @ self.basis.T)
        length = self.delta.norm(dim=2, keepdim=True)
        self.units *= (self.bound / length.clamp_min(1e-12)).clamp_max(1.0)
        self.units.copy_(torch.where(active[:, None], self.units, before))


def subspace(width: int, span: int) -> Float[Tensor, "width span"]:
    """An orthonormal basis of a random subspace, the same one for the same numbers."""
    draw = torch.randn(width, min(span, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draw).Q


def forward(tail: Tail, layer: int, recipe: Recipe, delta: Tensor, owner: Tensor) -> Tensor:
    """Final-norm hidden states with each row's δ added, at its first column, to the parts that the recipe names."""
    if recipe.target == "block":
        return tail(lambda hidden: added(hidden, delta[0][owner]))
    with ExitStack() as stack:
        for part, shift in zip(recipe.target.split("+"), delta, strict=True):
            stack.enter_context(at(tail.lab.arch, part, layer, lambda hidden, d=shift: added(hidden, d[owner])))
        return tail()


def added(hidden: Float[Tensor, "rows tokens d_model"], shift: Float[Tensor, "rows d_model"]) -> Tensor:
    """The hidden states with a shift of the first column."""
    return torch.cat([hidden[:, :1] + shift[:, None].to(hidden), hidden[:, 1:]], 1)


class Search:
    """δ of a batch's groups, which of them are still sought, and what they have lost at every pass.

    The bundles of one group that is ``parted`` run and go back one by one: only one's states are held at a time.
    """

    def __init__(self, lab: Lab, layer: int, recipe: Recipe, h: Float[Tensor, "parts groups d_model"],
                 bundles: list[Bundle], variable: Variable, alignment: Alignment | None,
                 parted: bool) -> None:  # fmt: skip
        self.lab, self.layer, self.recipe, self.alignment, self.parted = lab, layer, recipe, alignment, parted
        self.bundles, self.variable, self.length = bundles, variable, h.norm(dim=2)
        self.adam = torch.optim.Adam([variable.units], lr=1.0)
        self.active = torch.ones(h.shape[1], dtype=torch.bool, device=h.device)
        self.weight = torch.ones(h.shape[1], device=h.device)  # of the NLL: PMET lowers it at the arg-max
        self.curves: list[list[float]] = [[] for _ in range(h.shape[1])]

    def likelihood(self, delta: Tensor, bundles: list[Bundle]) -> tuple[Tensor, ...]:
        """(NLL and kl·KL, KL, target tokens missed if that ends it) of every group, zero of those without rows."""
        groups, counted = len(self.active), bool(self.recipe.settled)
        normed = lambda b: forward(b.tail, self.layer, self.recipe, delta, b.owner)  # noqa: E731
        told = [b.losses(self.lab, normed(b), groups, counted) for b in bundles]
        nll, kl, missed = (sum(parts) for parts in zip(*told, strict=True))
        return self.weight * nll + self.recipe.kl * kl, kl, missed

    def in_parts(self, delta: Tensor, back: bool) -> tuple[list[Tensor], Tensor]:
        """(``likelihood``, and its gradient if there is a way ``back``), taken bundle by bundle."""
        told, pull = [], torch.zeros_like(delta)
        for bundle in self.bundles:
            with torch.set_grad_enabled(back):
                found = self.likelihood(delta, [bundle])
            pull += torch.autograd.grad(found[0].sum(), delta)[0] if back else 0.0
            told.append([part.detach() for part in found])
            del found
        return [sum(parts) for parts in zip(*told, strict=True)], pull

    def beside(self, delta: Tensor) -> Tensor:
        """The loss of every group that needs no pass: decay and alignment."""
        loss = self.recipe.decay * (delta.norm(dim=2) / self.length**2).sum(0)
        return loss if self.alignment is None else loss + self.alignment.loss(delta[-1])

    def judge(self, delta: Tensor, likely: Tensor, kl: Tensor, missed: Tensor) -> None:
        """Note the loss of every group that is still sought, and let those go that are where they should be."""
        loss = likely + self.beside(delta)
        told, first = loss.tolist(), not any(self.curves)
        for g in self.active.nonzero()[:, 0].tolist():
            self.curves[g].append(told[g])
        if self.recipe.start == "zero" or not first:
            there = ~((loss if self.recipe.reuse == 1 else likely) >= self.recipe.stop)
            self.active &= ~(there if self.alignment is None else self.alignment.ended(there | ~self.active))
        if self.recipe.settled:
            self.active &= ~((missed == 0) & (self.recipe.kl * kl <= SETTLED_KL))

    def move(self, pull: Tensor, watch: Watch) -> None:
        """Adam's steps with the gradient of one pass; decay and alignment are taken anew at each."""
        for turn in range(self.recipe.reuse):
            self.adam.zero_grad()
            delta = self.variable.delta
            if turn:
                watch(turn, delta[-1].detach())
            ((pull * delta).sum() + self.beside(delta)[self.active].sum()).backward()
            before = self.variable.units.detach().clone()
            self.adam.step()
            self.variable.settle(before, self.active)

    def step(self, watch: Watch, last: bool) -> bool:
        """One pass, and the steps of Adam that its gradient serves; False if there is nothing left to do."""
        delta = self.variable.delta.detach().requires_grad_()
        watch(0, delta[-1].detach())
        if self.parted:
            (likely, kl, missed), pull = self.in_parts(delta, back=not last)
        else:
            (likely, kl, missed), pull = self.likelihood(delta, self.bundles), None
        self.judge(delta.detach(), likely.detach(), kl.detach(), missed)
        if last or not self.active.any():
            return False
        if pull is None and torch.cat([self.active[b.owner] for b in self.bundles]).float().mean() < AGAIN:
            del likely, kl, missed  # and what they hold for the way back
            self.bundles = staying(self.bundles, self.active)
            likely, kl, missed = self.likelihood(delta, self.bundles)
        if pull is None:
            (pull,) = torch.autograd.grad(likely[self.active].sum(), delta)
        del likely, kl
        self.move(pull, watch)
        if self.recipe.settled:
            self.weight = torch.where(missed == 0, self.recipe.settled, 1.0).to(self.weight)
        self.bundles = staying(self.bundles, self.active)
        return True


def descend(lab: Lab, rows: list[Asked], h: Float[Tensor, "parts groups d_model"] | None, norms: Tensor | None,
            layer: int, recipe: Recipe, alignment: Alignment | None, tokens: int, watch: Watch | None = None,
            leads: Known | None = None) -> Found:  # fmt: skip
    """(h, δ, loss curves) of the groups 0, 1, ... that the rows belong to, of the part that is written last.

    ``h`` is what δ is added to, unless that is a block's output: the tails begin with it. ``leads``: see ``Tail.each``.
    A single group with more than so many ``tokens`` runs in parts of at most so many (a longer row alone); the pasts of
    all its rows are held all the while.
    """
    start, rows = layer + (recipe.target == "block"), folded(rows)
    parts = by_length([a.length for a in rows], waste(lab))
    parted = sum(a.length for a in rows) > tokens
    if parted:
        widths = [max(rows[i].length for i in part) for part in parts]
        parts = [some for part, w in zip(parts, widths, strict=True) for some in chunks(part, max(1, tokens // w))]
    tails = Tail.each(lab, [a.row for a in rows], parts, start, leads)
    h = at_lookup(tails, parts, rows).to(lab.anchor.device) if h is None else h
    bundles = [Bundle.of([rows[i] for i in part], tail) for part, tail in zip(parts, tails, strict=True)]
    del tails
    search = Search(lab, layer, recipe, h, bundles, Variable.of(h, norms, recipe), alignment, parted)
    del bundles
    for step in range(recipe.steps):

        def seen(turn: int, delta: Tensor, begun: int = step * recipe.reuse) -> None:
            if watch is not None:
                watch(begun + turn, delta)

        if not search.step(seen, last=step == recipe.steps - 1):
            break
    return h[-1], search.variable.delta.detach()[-1], search.curves
