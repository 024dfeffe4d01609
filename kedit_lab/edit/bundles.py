"""Token rows of a batch in bundles of similar length: what they are asked, and the losses read from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_lab.model.lab import Lab
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import Row


@dataclass(frozen=True)
class Asked:
    """One token row of a group: ``weight`` is its share of the group's NLL; drift is measured at a lookup token."""

    row: Row
    group: int
    weight: float
    drift: bool = False

    @property
    def length(self) -> int:
        """Tokens from the lookup token on, which every pass runs again."""
        return len(self.row.ids) - self.row.lookup


@dataclass
class Bundle:
    """Rows that run through the tail together: (row, column) of every target token and the rows that measure drift."""

    rows: Sequence[Asked]
    tail: Tail
    owner: Int[Tensor, " rows"]
    row: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    token: Int[Tensor, " tokens"]
    weight: Float[Tensor, " tokens"]
    drift: Int[Tensor, " drifts"]
    reference: Float[Tensor, "drifts vocabulary"] | None = None

    @classmethod
    def of(cls, rows: Sequence[Asked], tail: Tail, reference: Tensor | None = None) -> "Bundle":
        spots = [
            (i, at - a.row.lookup, token, a.weight / len(a.row.target))
            for i, a in enumerate(rows)
            for at, token in zip(a.row.answers, a.row.target, strict=False)
        ]
        device = tail.lab.anchor.device  # δ's, wherever the layers are
        index = lambda values: torch.tensor(values, device=device, dtype=torch.long)  # noqa: E731
        row, column, token = (index([spot[i] for spot in spots]) for i in range(3))
        weight = torch.tensor([spot[3] for spot in spots], device=device)
        drift = index([i for i, a in enumerate(rows) if a.drift])
        tail = tail.reading(torch.cat([row, drift]), torch.cat([column, torch.zeros_like(drift)]))
        return cls(rows, tail, index([a.group for a in rows]), row, column, token, weight, drift, reference)

    def losses(self, lab: Lab, normed: Float[Tensor, "rows tokens d_model"], groups: int,
               counted: bool) -> tuple[Tensor, ...]:  # fmt: skip
        """(NLL, KL to the first pass, number of target tokens that are not the arg-max), what each group has here.

        They are counted only if asked for: the arg-max looks at every logit.
        """
        flat, width, owner = normed.flatten(0, 1), normed.shape[1], self.owner[self.row]
        at = lambda row, column: flat.index_select(0, (row * width + column).to(flat.device))  # noqa: E731
        logits = lambda row, column: lab.arch.logits(at(row, column)).float()  # noqa: E731
        said, drift = logits(self.row, self.column), logits(self.drift, 0).log_softmax(-1)
        if self.reference is None:
            self.reference = drift.detach()
        zeros, token = self.weight.new_zeros(groups), self.token.to(said.device)
        nll = cross_entropy(said, token, reduction="none").to(zeros.device) * self.weight
        kl = (drift.exp() * (drift - self.reference)).sum(-1).to(zeros.device)
        missed = zeros.index_add(0, owner, (said.argmax(-1) != token).to(zeros)) if counted else zeros
        return zeros.index_add(0, owner, nll), zeros.index_add(0, self.owner[self.drift], kl), missed

    def without(self, gone: Tensor) -> "Bundle":
        """The bundle without the rows of groups that left."""
        stay = ~gone[self.owner]
        if stay.all():
            return self
        kept = stay.nonzero()[:, 0]
        reference = None if self.reference is None else self.reference[stay[self.drift].to(self.reference.device)]
        return Bundle.of([self.rows[i] for i in kept.tolist()], self.tail.select(kept), reference)


def folded(rows: Sequence[Asked]) -> list[Asked]:
    """The same questions without rows that measure drift alone, where a row of the group begins with their ids.

    A causal model's state at the lookup token is the same in both.
    """
    starts = {(a.group, a.row.ids[: a.row.lookup + 1]): i for i, a in reversed(list(enumerate(rows))) if a.row.target}
    host = [None if a.row.target else starts.get((a.group, a.row.ids)) for a in rows]
    hosts = set(host)
    return [replace(a, drift=a.drift or i in hosts) for i, a in enumerate(rows) if host[i] is None]


def staying(bundles: Sequence[Bundle], active: Tensor) -> list[Bundle]:
    """The bundles with the rows of active groups alone."""
    return [bundle.without(~active) for bundle in bundles if active[bundle.owner].any()]
