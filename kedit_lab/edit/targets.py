"""What an edit wants the model to hold at the lookup token: target values z = h + δ, found by gradient descent on δ.

All facts of a batch are optimised together as one tensor problem over the tail of the forward pass; a group of facts
that shares one value has one δ (MEMIT-Merge, Eq. 3), a fact alone is a group of one (MEMIT).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit_lab.edit.recipes import Recipe
from kedit_lab.model.lab import Lab
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import Row, essence_row, fact_row
from kedit_lab.types import Fact

BUDGET = 2048  # tokens of one batched forward pass of the tail


@dataclass(frozen=True)
class Targets:
    """Target values z (facts x d_model), the hidden states they started from, and the loss curve of every group."""

    z: Float[Tensor, "facts d_model"]
    h: Float[Tensor, "facts d_model"]
    curves: list[list[float]]


@dataclass(frozen=True)
class Asked:
    """One token row of a group: ``weight`` is its share of the group's NLL, zero for the row that measures drift."""

    row: Row
    group: int
    weight: float


def questions(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
              prefixes: Sequence[str]) -> list[list[Asked]]:  # fmt: skip
    """Per group: every member behind every prefix (the bare first), weighted equally, and the row "{subject} is a"."""
    asked = []
    for g, members in enumerate(groups):
        share = 1 / (len(members) * (1 + len(prefixes)))
        rows = [
            Asked(fact_row(lab.tokenizer, facts[i], prefix, recipe.token), g, share)
            for i in members
            for prefix in ("", *prefixes)
        ]
        essence = essence_row(lab.tokenizer, facts[members[0]].subject)
        drift = Row(essence.prompt[: essence.lookup + 1], (), essence.lookup)
        asked.append([*rows, Asked(drift, g, 0.0)])
    return asked


def batches(asked: list[list[Asked]]) -> Iterator[list[int]]:
    """Groups of similar length, together at most BUDGET tokens behind their lookup tokens (or one group alone)."""
    size = [max(len(a.row.ids) - a.row.lookup for a in rows) for rows in asked]
    batch: list[int] = []
    for g in sorted(range(len(asked)), key=size.__getitem__):
        if batch and size[g] * sum(len(asked[b]) for b in [*batch, g]) > BUDGET:
            yield batch
            batch = []
        batch.append(g)
    yield batch


@dataclass(frozen=True)
class Reading:
    """Where a batch of rows is read: (row, column) of every target token and of every drift row, as index tensors."""

    owner: Int[Tensor, " rows"]
    row: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    token: Int[Tensor, " tokens"]
    weight: Float[Tensor, " tokens"]
    drift: Int[Tensor, " drifts"]

    @classmethod
    def of(cls, rows: Sequence[Asked], anchor: Tensor) -> "Reading":
        spots = [
            (i, at - a.row.lookup, token, a.weight / len(a.row.target))
            for i, a in enumerate(rows)
            for at, token in zip(a.row.answers, a.row.target, strict=False)
        ]
        row, column, token, weight = zip(*spots, strict=True)
        index = lambda values: torch.tensor(values, device=anchor.device)  # noqa: E731
        return cls(index([a.group for a in rows]), index(row), index(column), index(token), index(weight),
                   index([i for i, a in enumerate(rows) if not a.row.target]))  # fmt: skip

    def losses(self, lab: Lab, normed: Tensor, groups: int, reference: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(NLL, KL to the reference, log-probabilities at the drift rows), the first two per group."""
        spots = torch.cat([normed[self.row, self.column], normed[self.drift, 0]])
        logp = lab.arch.logits(spots).float().log_softmax(-1)
        said, drift = logp[: len(self.row)], logp[len(self.row) :]
        chosen = -said.gather(1, self.token[:, None])[:, 0] * self.weight
        zeros = chosen.new_zeros(groups)
        nll = zeros.index_add(0, self.owner[self.row], chosen)
        past = drift.detach() if reference is None else reference
        kl = zeros.index_add(0, self.owner[self.drift], (drift.exp() * (drift - past)).sum(-1))
        return nll, kl, drift.detach()


def values(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
           prefixes: Sequence[str]) -> Targets:  # fmt: skip
    """Target values of all facts: δ per group minimises NLL + kl·KL + decay·‖δ‖/‖h‖² (MEMIT, Eq. 4, and its code).

    δ is added to the output of the recipe's last layer at the lookup token. Adam, at most ``steps`` passes (the last
    one updates nothing); a group whose loss is under ``stop`` leaves the batch; ‖δ‖ stays within ``clamp``·‖h‖.
    """
    layer = lab.arch.layer(recipe.layers[-1])
    asked = questions(lab, facts, groups, recipe, prefixes)
    z, h = (torch.empty(len(facts), lab.arch.d_model, device=lab.anchor.device) for _ in range(2))
    curves: list[list[float]] = [[] for _ in groups]
    for batch in batches(asked):
        rows = [Asked(a.row, i, a.weight) for i, g in enumerate(batch) for a in asked[g]]
        start, delta, losses = descend(lab, rows, len(batch), layer, recipe)
        for i, g in enumerate(batch):
            members = list(groups[g])
            h[members], z[members] = start[i], start[i] + delta[i]
            curves[g] = losses[i]
    return Targets(z, h, curves)


def descend(lab: Lab, rows: list[Asked], groups: int, layer: int, recipe: Recipe) -> tuple[Tensor, Tensor, list]:
    """(h, δ, loss curves) of the groups 0 .. groups-1 that the rows belong to."""
    tail = Tail.of(lab, [a.row for a in rows], layer + 1)
    reading = Reading.of(rows, lab.anchor)
    heads = [next(i for i, a in enumerate(rows) if a.group == g) for g in range(groups)]
    h = tail.hidden[heads, 0].float()
    norm = h.norm(dim=1, keepdim=True)
    scale = recipe.lr * (norm / h.shape[1] ** 0.5 if recipe.lr_unit == "hidden" else torch.ones_like(norm))
    steps = torch.zeros_like(h).requires_grad_()  # δ in units of the step size, so that one Adam serves every group
    adam = torch.optim.Adam([steps], lr=1.0)
    active, reference = torch.ones(groups, dtype=torch.bool, device=h.device), None
    curves: list[list[float]] = [[] for _ in range(groups)]
    for step in range(recipe.steps):
        delta = scale * steps
        owner = reading.owner
        normed = tail(
            lambda hidden, d=delta, o=owner: torch.cat([hidden[:, :1] + d[o][:, None].to(hidden), hidden[:, 1:]], 1)
        )
        nll, kl, drift = reading.losses(lab, normed, groups, reference)
        reference = drift if reference is None else reference
        loss = nll + recipe.kl * kl + recipe.decay * delta.norm(dim=1) / norm[:, 0] ** 2
        for g in active.nonzero()[:, 0].tolist():
            curves[g].append(float(loss[g].detach()))
        active &= loss.detach() >= recipe.stop
        if step == recipe.steps - 1 or not active.any():
            break
        adam.zero_grad()
        loss[active].sum().backward()
        before = steps.detach().clone()
        adam.step()
        with torch.no_grad():
            length = (scale * steps).norm(dim=1, keepdim=True)
            steps *= (recipe.clamp * norm / length.clamp_min(1e-12)).clamp_max(1.0)
            steps.copy_(torch.where(active[:, None], steps, before))
        if (share := active[reading.owner]).float().mean() < 0.8:
            kept = share.nonzero()[:, 0]
            reference = reference[share[reading.drift]]
            rows = [rows[i] for i in kept.tolist()]
            tail, reading = tail.select(kept), Reading.of(rows, lab.anchor)
    return h, (scale * steps).detach(), curves
