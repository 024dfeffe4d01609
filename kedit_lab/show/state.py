"""What the collision panel shows, without a widget in sight: a batch is drawn, edited in, measured, and undone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from kedit_lab.edit.run import edit
from kedit_lab.extract.keys import keys
from kedit_lab.measure.geometry import cosine
from kedit_lab.measure.metrics import Report, evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.collision import draw
from kedit_lab.types import Fact

ARMS = {
    "distinct subjects · memit": ("memit", "distinct"),
    "one subject · memit": ("memit", "same"),
    "one subject · memit-merge": ("memit-merge", "same"),
}
SIZES = range(1, 51)
ANSWER_TOKENS = 10
# a slider has to answer at once:
NEIGHBORS = 3  # of each fact's ten
PREFIXES = 0  # values are found behind the bare prompt alone, a third of the recipe's rows


@dataclass(frozen=True)
class CollisionResult:
    """One edit of one batch: its facts, the cosines of their keys, and what the model said before and after."""

    size: int
    arm: str
    seed: int
    facts: tuple[Fact, ...]
    cosine: Float[np.ndarray, "facts facts"]
    report: Report
    before: tuple[str, ...]
    after: tuple[str, ...]
    seconds: float
    collisions: str

    @property
    def efficacy(self) -> float:
        """Share of the batch that the edited model answers as wanted."""
        return float(self.report.summary()["efficacy"])

    @property
    def specificity(self) -> float:
        """Share of neighbourhood prompts that the edited model still answers with their own objects."""
        return float(self.report.summary()["specificity"])

    @property
    def frame(self) -> pd.DataFrame:
        """One row per fact: ``prompt``, ``before``, ``wanted``, ``after``, ``done``."""
        asked = self.report[self.report["kind"] == "rewrite"]
        return pd.DataFrame(
            {
                "prompt": [fact.text for fact in self.facts],
                "before": self.before,
                "wanted": [fact.target_new for fact in self.facts],
                "after": self.after,
                "done": asked["exact"].to_numpy() == 1,
            }
        )


@dataclass
class CollisionState:
    """Which batch is edited, and how: ``size`` facts, an ``arm`` of the collision study, a ``seed``.

    ``run`` really edits the lab's model, and undoes it; ``tried`` remembers what came out, one row per run.
    """

    lab: Lab
    size: int = 10
    arm: str = "one subject · memit"
    seed: int = 0
    tried: dict[tuple[str, int, int], dict[str, float]] = field(default_factory=dict, repr=False)
    known: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """Raise a ValueError for a batch that cannot be drawn."""
        if self.arm not in ARMS:
            raise ValueError(f"arm is {self.arm!r}; choose one of {', '.join(map(repr, ARMS))}")
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; give a number from {SIZES[0]} to {SIZES[-1]}")

    def run(self) -> CollisionResult:
        """Edit the batch in, ask, and undo: the weights come back bit for bit, also after an exception."""
        self.check()
        method, subjects = ARMS[self.arm]
        facts = draw(subjects, self.size, self.seed)
        before = self.answers_before(facts)
        made = edit(self.lab, facts, method, prefixes=PREFIXES)
        k = keys(self.lab, facts, made.recipe.layers[-1], prefixes=None)
        asked = [replace(fact, neighborhood=fact.neighborhood[:NEIGHBORS]) for fact in facts]
        with made.applied():
            report = evaluate(self.lab, asked, kinds=("rewrite", "neighborhood"))
            after = answers(self.lab, facts)
        seconds = sum(made.seconds.values())
        result = CollisionResult(self.size, self.arm, self.seed, tuple(facts), cosine(k).cpu().numpy(), report,
                                 before, after, seconds, made.collisions)  # fmt: skip
        found = {"efficacy": result.efficacy, "specificity": result.specificity}
        self.tried[self.arm, self.size, self.seed] = found
        return result

    def answers_before(self, facts: Sequence[Fact]) -> tuple[str, ...]:
        """What the unedited model says; asked once for every prompt and every state of the weights."""
        base = self.lab.fingerprint()
        new = [fact for fact in facts if (base, fact.text) not in self.known]
        if new:
            self.known |= {(base, fact.text): said for fact, said in zip(new, answers(self.lab, new), strict=True)}
        return tuple(self.known[base, fact.text] for fact in facts)

    def history(self) -> pd.DataFrame:
        """Every run so far: ``arm``, ``size``, ``seed``, ``efficacy``, ``specificity``."""
        rows = [dict(zip(("arm", "size", "seed"), at, strict=True)) | found for at, found in self.tried.items()]
        frame = pd.DataFrame(rows, columns=["arm", "size", "seed", "efficacy", "specificity"])
        return frame.assign(arm=pd.Categorical(frame["arm"], categories=list(ARMS)))


def answers(lab: Lab, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The model's greedy answers to the facts' prompts, up to the end of the sentence."""
    texts = lab.generate([fact.text for fact in facts], ANSWER_TOKENS)
    said = [text[len(fact.text) :] for text, fact in zip(texts, facts, strict=True)]
    return tuple(re.split(r"[.,?!;]?\s*\n|[.,?!;](?:\s|$)", text.strip(), maxsplit=1)[0] for text in said)
