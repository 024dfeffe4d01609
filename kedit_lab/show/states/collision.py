"""What the collision panel shows: a batch about one subject or many is drawn, edited in, measured, and undone."""

from dataclasses import dataclass

import pandas as pd

from kedit_lab.edit.run import edit
from kedit_lab.extract.keys import keys
from kedit_lab.measure.geometry import cosine
from kedit_lab.show.states.base import among
from kedit_lab.show.states.batch import PREFIXES, Batch, BatchState
from kedit_lab.study.collision import draw

ARMS = {
    "distinct subjects · memit": ("memit", "distinct"),
    "one subject · memit": ("memit", "same"),
    "one subject · memit-merge": ("memit-merge", "same"),
}
SIZES = range(1, 51)


@dataclass(frozen=True)
class CollisionResult(Batch):
    """A batch with the settings that it was drawn with."""

    size: int
    arm: str
    seed: int
    seconds: float
    collisions: str


@dataclass
class CollisionState(BatchState):
    """Which batch is edited, and how: ``size`` facts, an ``arm`` of the collision study, a ``seed``.

    ``run`` really edits the lab's model, and undoes it; ``tried`` remembers what came out, one row per run.
    """

    size: int = 10
    arm: str = "one subject · memit"
    seed: int = 0

    def check(self) -> None:
        """Raise a ValueError for a batch that cannot be drawn."""
        among("arm", self.arm, ARMS)
        among("size", self.size, SIZES)

    def run(self) -> CollisionResult:
        """Edit the batch in, ask, and undo: the weights come back bit for bit, also after an exception."""
        self.check()
        method, subjects = ARMS[self.arm]
        facts = draw(subjects, self.size, self.seed)
        before = self.answers_before(facts)
        self.watch()
        made = edit(self.lab, facts, method, prefixes=PREFIXES, watch=lambda *_: self.watch())
        k = keys(self.lab, facts, made.recipe.layers[-1], prefixes=None)
        report, after = self.asked(made, facts)
        result = CollisionResult(tuple(facts), cosine(k).cpu().numpy(), report, before, after,
                                 self.size, self.arm, self.seed, sum(made.seconds.values()),
                                 made.collisions)  # fmt: skip
        self.tried[self.arm, self.size, self.seed] = result.found
        return result

    def history(self) -> pd.DataFrame:
        """Every run so far: ``arm``, ``size``, ``seed``, ``efficacy``, ``specificity``."""
        rows = [dict(zip(("arm", "size", "seed"), at, strict=True)) | found for at, found in self.tried.items()]
        frame = pd.DataFrame(rows, columns=["arm", "size", "seed", "efficacy", "specificity"])
        return frame.assign(arm=pd.Categorical(frame["arm"], categories=list(ARMS)))
