"""What the alignment panel shows: how residuals and keys of a batch see each other while targets are optimised."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.geometry import cosine, misalignment
from kedit_lab.show.states.base import State, among
from kedit_lab.show.states.batch import PREFIXES
from kedit_lab.types import Fact

METHODS = ("memit", "eamet")
SIZES = range(2, 31)
DENSITIES = range(1, 6)


@dataclass(frozen=True)
class AlignmentResult:
    """All pairs of a batch at a step: cosines of keys and of residuals, whether they share a subject; ΣA(i) so far."""

    method: str
    step: int
    key: Float[np.ndarray, " pairs"]
    residual: Float[np.ndarray, " pairs"]
    related: Bool[np.ndarray, " pairs"]
    facts: tuple[Fact, ...]
    misaligned: tuple[float, ...]
    finished: bool = False


@dataclass
class AlignmentState(State):
    """``size`` facts, ``per_subject`` for each subject, whose targets a ``method`` finds; shown every ``every`` steps.

    ``tried`` holds the sum of A(i) per step of the latest run of each method on this batch.
    """

    method: str = "memit"
    size: int = 8
    per_subject: int = 2
    seed: int = 0
    every: int = 5
    tried: dict[tuple[str, int, int, int], tuple[float, ...]] = field(default_factory=dict, repr=False, kw_only=True)

    def check(self) -> None:
        """Raise a ValueError for a batch that cannot be drawn, or another method."""
        among("method", self.method, METHODS)
        among("size", self.size, SIZES)
        among("per_subject", self.per_subject, DENSITIES)
        among("every", self.every, range(1, 1001))

    def run(self) -> AlignmentResult:
        """Find the targets, looking at them on the way; the edit itself is not applied."""
        self.check()
        facts = tuple(by_density(self.size, self.per_subject, self.seed))
        layer = find(self.method).on(self.lab.arch).layers[-1]
        k = keys(self.lab, facts, layer, prefixes=None)
        seen: list[AlignmentResult] = []
        edit(self.lab, facts, self.method, prefixes=PREFIXES, watch=partial(self.look, facts, k, seen))
        self.tried[self.method, self.size, self.per_subject, self.seed] = seen[-1].misaligned
        return replace(seen[-1], finished=True)

    def look(self, facts: tuple[Fact, ...], k: Tensor, seen: list[AlignmentResult], step: int, delta: Tensor) -> None:
        """One step of the optimisation: measure, remember, and show every few steps."""
        earlier = seen[-1].misaligned if seen else ()
        told = (*earlier, float(misalignment(delta.float(), k.float()).sum()))
        seen[:] = [picture(self.method, facts, k, delta, told)]
        self.watch(*(seen if step % self.every == 0 else ()))

    def history(self) -> pd.DataFrame:
        """ΣA(i) per step of every method tried on this batch: ``method``, ``step``, ``misaligned``."""
        rows = [
            {"method": method, "step": step, "misaligned": value}
            for (method, *at), curve in self.tried.items()
            if at == [self.size, self.per_subject, self.seed]
            for step, value in enumerate(curve)
        ]
        return pd.DataFrame(rows, columns=["method", "step", "misaligned"])


def picture(method: str, facts: tuple[Fact, ...], k: Float[Tensor, "facts d_k"], residuals: Float[Tensor, "facts d"],
            misaligned: tuple[float, ...]) -> AlignmentResult:  # fmt: skip
    """The pairs of a batch as they stand."""
    a, b = torch.triu_indices(len(facts), len(facts), 1).tolist()
    pairs = [cosine(x)[a, b].double().cpu().numpy() for x in (k, residuals)]
    related = np.array([facts[i].subject == facts[j].subject for i, j in zip(a, b, strict=True)])
    return AlignmentResult(method, len(misaligned) - 1, *pairs, related, facts, misaligned)
