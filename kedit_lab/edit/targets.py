"""What an edit wants the model to hold at the lookup token: target values z = h + δ, found by gradient descent on δ.

All facts of a batch are optimised together as one tensor problem over the tail of the forward pass; a group of facts
that shares one value has one δ (MEMIT-Merge, Eq. 3), a fact alone is a group of one (MEMIT). δ is added to a block's
output (MEMIT), to its MLP's (ROME), or one to its attention's and one to its MLP's (PMET).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kedit_lab.edit.align import Alignment
from kedit_lab.edit.bundles import Asked, Bundle, folded, staying
from kedit_lab.edit.journal import Found, Journal
from kedit_lab.edit.recipe import Recipe
from kedit_lab.extract.keys import keys, read
from kedit_lab.model.hooks import at
from kedit_lab.model.lab import Lab
from kedit_lab.model.past import Known, waste
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import Row, by_length
from kedit_lab.types import Fact

ROOM = 2**26  # bytes that a batched pass may hold for its way back, however small the model
PAST = 0.1  # of what a token behind the lookup token holds, a token before it does: attention keys and values alone
AGAIN = 0.5  # share of a pass's rows still sought under which they run again alone, sooner than all of them back
LONG = 100.0  # norm of a hidden state from which EAMET's code starts at zero
SETTLED_KL = 0.01  # weighted KL under which PMET's code ends once the target is the arg-max
Watch = Callable[[int, Tensor], object]  # of the optimisation: Adam's step, and δ (groups x d_model) as it stands


@dataclass(frozen=True)
class Targets:
    """Target values z (facts x d_model), the hidden states they started from, the loss curve of every group, and the
    averaged keys of the last layer where they had to be read for the values."""

    z: Float[Tensor, "facts d_model"]
    h: Float[Tensor, "facts d_model"]
    curves: list[list[float]]
    keys: Float[Tensor, "facts d_k"] | None = None


def questions(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
              prefixes: Sequence[str]) -> list[list[Asked]]:  # fmt: skip
    """Per group: every member behind every prefix (the bare first), weighted equally, and the row "{subject} is a"."""
    rows = lab.rows(facts, ("", *prefixes), recipe.token)
    essences = lab.essences([facts[members[0]].subject for members in groups])
    asked = []
    for g, (members, essence) in enumerate(zip(groups, essences, strict=True)):
        share = 1 / (len(members) * (1 + len(prefixes)))
        drift = Row(essence.prompt[: essence.lookup + 1], (), essence.lookup)
        asked.append([*(Asked(row, g, share) for i in members for row in rows[i]), Asked(drift, g, 0.0, drift=True)])
    return asked


def budget(lab: Lab, start: int = 0, room: int | None = None) -> int:
    """Tokens of one batched pass of the tail, so that what it holds is about a sixth of the model, or ``room``; or
    half of what the model leaves of a device's own memory, where few tokens leave most of it idle.

    Counted per token: some ten vectors of the residual stream and eight keys a block from ``start`` on, logits twice.
    """
    logits = 2 * len(lab.model.get_input_embeddings().weight)
    held = (lab.arch.layers - start) * (10 * lab.arch.d_model + 8 * lab.arch.d_k) + logits
    size = sum(p.numel() * p.element_size() for p in lab.model.parameters())
    left = torch.cuda.mem_get_info(lab.anchor.device)[1] - size if lab.anchor.is_cuda else 0  # the same at every run
    return max(1, int(max(ROOM if room is None else room, size / 6, left / 2) / (held * lab.anchor.element_size())))


def batches(asked: list[list[Asked]], tokens: int, turns: Sequence[int] | None = None,
            most: int = 0) -> Iterator[list[int]]:  # fmt: skip
    """Groups of similar size, together at most ``tokens`` behind their lookup tokens, those before counted as PAST (or
    one group alone).

    Aligned targets depend on earlier ones: with ``turns`` groups stay in order within a turn, which ends before the
    next begins, at most ``most`` at once (0: no bound), and only tokens behind the lookup token count.
    """
    past = 0.0 if turns else PAST
    size = [sum(a.length + past * a.row.lookup for a in rows) for rows in asked]
    batch: list[int] = []
    for g in sorted(range(len(asked)), key=(turns or size).__getitem__):
        full = sum(size[b] for b in [*batch, g]) > tokens
        if batch and (full or (turns and turns[g] != turns[batch[0]]) or 0 < most <= len(batch)):
            yield batch
            batch = []
        batch.append(g)
    yield batch


def values(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
           prefixes: Sequence[str], watch: Watch | None = None,
           journal: Journal | None = None) -> Targets:  # fmt: skip
    """Target values of all facts: δ per group minimises NLL + kl·KL + decay·‖δ‖/‖h‖² (MEMIT, Eq. 4, and its code).

    δ is added at the lookup token of the recipe's last layer. Adam, at most ``steps`` passes (the last one updates
    nothing); a group whose loss is under ``stop`` leaves the batch; ‖δ‖ stays within ``clamp`` times its bound.
    EAMET adds its alignment with the keys of all other groups so far: those with close keys as they ended, the rest of
    its batch as they stand. A pass's gradient serves ``reuse`` steps of Adam, at each of which decay and alignment are
    taken anew. ``watch`` is called before every step and at the last pass. A ``journal`` is told every batch once it is
    found, and those that it holds already are not found again.
    """
    layer = lab.arch.layer(recipe.layers[-1])
    asked = questions(lab, facts, groups, recipe, prefixes)
    begun = None if recipe.target == "block" else starts(lab, [facts[members[0]] for members in groups], layer, recipe)
    each = means = None
    if recipe.align == "keys" or "key" in (recipe.bound, recipe.start):
        each = keys(lab, facts, layer, prefixes or None, recipe.token)
        means = torch.stack([each[list(members)].float().mean(0) for members in groups]).to(lab.anchor.device)
    alignment = Alignment.of(means, recipe) if recipe.align == "keys" and means is not None else None
    z, h = (torch.empty(len(facts), lab.arch.d_model, device=lab.anchor.device) for _ in range(2))
    curves: list[list[float]] = [[] for _ in groups]
    known = torch.zeros(len(groups), lab.arch.d_model, device=lab.anchor.device)  # δ of every group so far
    # an aligned value depends on the size of its block, which therefore does not depend on the layer
    tokens = budget(lab, 0, 3 * ROOM) if alignment is not None else budget(lab, layer + 1, 2 * ROOM)
    leads: Known = {}
    turns, most = (None, 0) if alignment is None else (alignment.turns(), recipe.block)
    for batch in batches(asked, tokens, turns, most):
        kept = None if journal is None else journal.take(batch, known)
        if kept is None:
            rows = [replace(a, group=i) for i, g in enumerate(batch) for a in asked[g]]
            norms = None if means is None else means[batch].norm(dim=1)
            ahead = None if alignment is None else alignment.ahead(batch)
            seen = None if watch is None else partial(tell, watch, known, batch)
            own = None if begun is None else begun[:, batch]
            kept = descend(lab, rows, own, norms, layer, recipe, ahead, seen, leads)
            if journal is not None:
                journal.keep(batch, *kept)
        start, delta, losses = kept
        known[batch] = delta
        if alignment is not None:
            alignment.keep(batch, delta)
        for i, g in enumerate(batch):
            members = list(groups[g])
            h[members], z[members] = start[i], start[i] + delta[i]
            curves[g] = losses[i]
    return Targets(z, h, curves, each)


def starts(lab: Lab, heads: Sequence[Fact], layer: int, recipe: Recipe) -> Float[Tensor, "parts groups d_model"]:
    """What the parts that the recipe names hold at the lookup token of bare prompts."""
    parts = recipe.target.split("+")
    held = [read(lab, heads, part, [layer], None, recipe.token)[layer][:, 0].float() for part in parts]
    return torch.stack(held).to(lab.anchor.device)


def at_lookup(tails: Sequence[Tail], parts: Sequence[Sequence[int]],
              rows: Sequence[Asked]) -> Float[Tensor, "1 groups d_model"]:  # fmt: skip
    """What enters a tail at the lookup token of every group's first row, the bare prompt of its first member."""
    hidden = torch.cat([tail.hidden[:, 0] for tail in tails]).float()
    place = {row: at for at, row in enumerate(row for part in parts for row in part)}
    first = {a.group: i for i, a in reversed(list(enumerate(rows)))}
    return hidden[[place[first[g]] for g in sorted(first)]][None]


def tell(watch: Watch, known: Tensor, batch: list[int], step: int, delta: Float[Tensor, "batch d_model"]) -> None:
    """Tell who watches how a batch of groups stands, beside those before it."""
    known[batch] = delta
    watch(step, known.clone())


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


def descend(lab: Lab, rows: list[Asked], h: Float[Tensor, "parts groups d_model"] | None, norms: Tensor | None,
            layer: int, recipe: Recipe, alignment: Alignment | None, watch: Watch | None = None,
            leads: Known | None = None) -> Found:  # fmt: skip
    """(h, δ, loss curves) of the groups 0, 1, ... that the rows belong to, of the part that is written last.

    ``h`` is what δ is added to, unless that is a block's output: the tails begin with it. ``leads``: see ``Tail.each``.
    """
    start, rows = layer + (recipe.target == "block"), folded(rows)
    parts = by_length([a.length for a in rows], waste(lab))
    tails = Tail.each(lab, [a.row for a in rows], parts, start, leads)
    h = at_lookup(tails, parts, rows).to(lab.anchor.device) if h is None else h
    groups = h.shape[1]
    bundles = [Bundle.of([rows[i] for i in part], tail) for part, tail in zip(parts, tails, strict=True)]
    del tails
    variable = Variable.of(h, norms, recipe)
    adam = torch.optim.Adam([variable.units], lr=1.0)
    length = h.norm(dim=2)
    active = torch.ones(groups, dtype=torch.bool, device=h.device)
    weight = torch.ones(groups, device=h.device)  # of the NLL; PMET lowers it once the target is the arg-max
    curves: list[list[float]] = [[] for _ in range(groups)]

    def passed(delta: Tensor) -> tuple[Tensor, ...]:
        """(NLL and kl·KL, KL, target tokens missed if that ends it) of every group, zero of those that have left."""
        counted = bool(recipe.settled)
        told = [b.losses(lab, forward(b.tail, layer, recipe, delta, b.owner), groups, counted) for b in bundles]
        nll, kl, missed = (sum(parts) for parts in zip(*told, strict=True))
        return weight * nll + recipe.kl * kl, kl, missed

    def beside(delta: Tensor) -> Tensor:
        """The loss of every group that needs no pass: decay and alignment."""
        loss = recipe.decay * (delta.norm(dim=2) / length**2).sum(0)
        return loss if alignment is None else loss + alignment.loss(delta[-1])

    for step in range(recipe.steps):
        delta = variable.delta.detach().requires_grad_()
        if watch is not None:
            watch(step * recipe.reuse, delta[-1].detach())
        likely, kl, missed = passed(delta)
        loss = likely.detach() + beside(delta.detach())
        told = loss.tolist()
        for g in active.nonzero()[:, 0].tolist():
            curves[g].append(told[g])
        if recipe.start == "zero" or step:
            there = ~((loss if recipe.reuse == 1 else likely.detach()) >= recipe.stop)
            active &= ~(there if alignment is None else alignment.ended(there | ~active))
        if recipe.settled:
            active &= ~((missed == 0) & (recipe.kl * kl.detach() <= SETTLED_KL))
        if step == recipe.steps - 1 or not active.any():
            break
        if torch.cat([active[b.owner] for b in bundles]).float().mean() < AGAIN:
            del likely, kl, missed  # and what they hold for the way back
            bundles = staying(bundles, active)
            likely, kl, missed = passed(delta)
        (pull,) = torch.autograd.grad(likely[active].sum(), delta)
        del likely, kl
        for turn in range(recipe.reuse):
            adam.zero_grad()
            delta = variable.delta
            if watch is not None and turn:
                watch(step * recipe.reuse + turn, delta[-1].detach())
            ((pull * delta).sum() + beside(delta)[active].sum()).backward()
            before = variable.units.detach().clone()
            adam.step()
            variable.settle(before, active)
        if recipe.settled:
            weight = torch.where(missed == 0, recipe.settled, 1.0).to(weight)
        bundles = staying(bundles, active)
    return h[-1], variable.delta.detach()[-1], curves
