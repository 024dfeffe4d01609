"""What the density panel shows: a batch with one to five facts per subject, edited at once or one after another."""

from dataclasses import dataclass

import pandas as pd

from kedit_lab.edit.recipes import find
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.geometry import cosine
from kedit_lab.show.states.base import among
from kedit_lab.show.states.batch import PREFIXES, Batch, BatchState
from kedit_lab.study.load import METHODS
from kedit_lab.study.sweep import MODES, written

SIZES = range(1, 31)
DENSITIES = range(1, 6)
COLUMNS = ["method", "mode", "per_subject", "size", "seed"]


@dataclass(frozen=True)
class DensityResult(Batch):
    """A batch with the settings that it was drawn and written with, as a row of ``history`` has them."""

    at: tuple[str, str, int, int, int]


@dataclass
class DensityState(BatchState):
    """``size`` facts, ``per_subject`` of them for each subject, written with a ``method`` in a ``mode``."""

    size: int = 10
    per_subject: int = 2
    mode: str = "batch"
    method: str = "memit"
    seed: int = 0

    def check(self) -> None:
        """Raise a ValueError for a batch that cannot be drawn or written."""
        among("size", self.size, SIZES)
        among("per_subject", self.per_subject, DENSITIES)
        among("mode", self.mode, MODES)
        among("method", self.method, METHODS)

    def run(self) -> DensityResult:
        """Edit, ask, undo; a sequence is stopped between two facts, a batch between two steps."""
        self.check()
        at = (self.method, self.mode, self.per_subject, self.size, self.seed)
        facts = by_density(self.size, self.per_subject, self.seed)
        before = self.answers_before(facts)
        self.watch()
        layer = find(self.method).on(self.lab.arch).layers[-1]
        k = keys(self.lab, facts, layer, prefixes=None)
        made = written(self.lab, facts, self.method, self.mode, prefixes=PREFIXES, **self.pauses())
        report, after = self.asked(made, facts)
        result = DensityResult(tuple(facts), cosine(k).cpu().numpy(), report, before, after, at)
        self.tried[at] = result.found
        return result

    def pauses(self) -> dict:
        """How each mode comes to a safe point."""
        if self.mode == "batch":
            return {"watch": lambda *_: self.watch()}
        return {"until": lambda _: bool(self.watch())}

    def history(self) -> pd.DataFrame:
        """Every run so far: its settings, ``efficacy`` and ``specificity``."""
        rows = [dict(zip(COLUMNS, at, strict=True)) | found for at, found in self.tried.items()]
        return pd.DataFrame(rows, columns=[*COLUMNS, "efficacy", "specificity"])
