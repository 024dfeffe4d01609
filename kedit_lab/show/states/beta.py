"""What the β panel shows: for one fact of a batch, how much of every fact's residual arrives at its key."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from kedit_lab.edit.recipes import find
from kedit_lab.extract.betas import betas
from kedit_lab.extract.keys import keys
from kedit_lab.extract.moments import second_moment
from kedit_lab.facts.sets import by_density
from kedit_lab.show.states.base import State, among
from kedit_lab.types import Fact

SIZES = range(2, 31)
DENSITIES = range(1, 6)
FORMS = ("λC + KKᵀ", "pseudo-inverse")


@dataclass(frozen=True)
class BetaResult:
    """β of a batch in one form, and the number of the chosen fact (0: the first)."""

    facts: tuple[Fact, ...]
    beta: Float[np.ndarray, "facts facts"]
    fact: int
    form: str
    lam: float

    @property
    def frame(self) -> pd.DataFrame:
        """The chosen fact's row: ``fact`` (a number, from 1), ``prompt``, ``β`` and ``who`` it is to the chosen one."""
        own = self.facts[self.fact].subject
        who = ["its subject" if fact.subject == own else "another subject" for fact in self.facts]
        who[self.fact] = "itself"
        prompts = [fact.text for fact in self.facts]
        return pd.DataFrame(
            {"fact": range(1, len(prompts) + 1), "prompt": prompts, "β": self.beta[self.fact], "who": who}
        )


@dataclass
class BetaState(State):
    """A ``fact`` among ``size`` facts, ``per_subject`` for each subject; ``form`` is the solve that β belongs to."""

    fact: int = 0
    size: int = 10
    per_subject: int = 2
    form: str = FORMS[0]
    seed: int = 0
    known: dict[tuple, BetaResult] = field(default_factory=dict, repr=False, kw_only=True)

    def check(self) -> None:
        """Raise a ValueError for a batch that cannot be drawn, or a fact that is not in it."""
        among("size", self.size, SIZES)
        among("per_subject", self.per_subject, DENSITIES)
        among("form", self.form, FORMS)
        among("fact", self.fact, range(self.size))

    def facts(self) -> tuple[Fact, ...]:
        """The batch."""
        return tuple(by_density(self.size, self.per_subject, self.seed))

    def run(self) -> BetaResult:
        """Read the keys as memit does, and C; β of the whole batch is kept, a row of it is looked at."""
        self.check()
        at = (self.lab.fingerprint(), self.size, self.per_subject, self.form, self.seed)
        if at not in self.known:
            self.known[at] = self.whole()
        found = self.known[at]
        return BetaResult(found.facts, found.beta, self.fact, found.form, found.lam)

    def whole(self) -> BetaResult:
        """β between all facts of the batch."""
        recipe = find("memit").on(self.lab.arch)
        layer, facts = recipe.layers[-1], self.facts()
        k = keys(self.lab, facts, layer, prefixes=None)
        self.watch()
        lam = float(recipe.lam_of(layer)) if self.form == FORMS[0] else 0.0
        beta = betas(k, second_moment(self.lab, layer), lam) if lam else betas(k)
        return BetaResult(facts, beta.cpu().numpy(), 0, self.form, lam)
