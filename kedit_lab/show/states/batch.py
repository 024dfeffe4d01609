"""A batch that was edited in, asked and taken out again: what the collision and the density panel show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from kedit_lab.edit.edit import Edit
from kedit_lab.measure.metrics import Report, evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.show.states.base import State
from kedit_lab.study.sequence import Run
from kedit_lab.types import Fact

ANSWER_TOKENS = 10
# a slider has to answer at once:
NEIGHBORS = 3  # of each fact's ten
PREFIXES = 0  # values are found behind the bare prompt alone, a third of the recipe's rows


@dataclass(frozen=True)
class Batch:
    """One edit of one batch: its facts, the cosines of their keys, and what the model said before and after."""

    facts: tuple[Fact, ...]
    cosine: Float[np.ndarray, "facts facts"]
    report: Report
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def efficacy(self) -> float:
        """Share of the batch that the edited model answers as wanted."""
        return float(self.report.summary()["efficacy"])

    @property
    def specificity(self) -> float:
        """Share of neighbourhood prompts that the edited model still answers with their own objects."""
        return float(self.report.summary()["specificity"])

    @property
    def found(self) -> dict[str, float]:
        """The two metrics by name."""
        return {"efficacy": self.efficacy, "specificity": self.specificity}

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
class BatchState(State):
    """A state that edits batches in; ``known`` holds what the unedited model says, by prompt and state of the weights.

    ``tried`` remembers the metrics of every run by its settings.
    """

    tried: dict[tuple, dict[str, float]] = field(default_factory=dict, repr=False, kw_only=True)
    known: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, kw_only=True)

    def asked(self, made: Edit | Run, facts: Sequence[Fact]) -> tuple[Report, tuple[str, ...]]:
        """(report, answers in words) of the edited model, which is unedited again afterwards."""
        few = [replace(fact, neighborhood=fact.neighborhood[:NEIGHBORS]) for fact in facts]
        with made.applied():
            report = evaluate(self.lab, few, kinds=("rewrite", "neighborhood"))
            self.watch()
            return report, answers(self.lab, facts)

    def answers_before(self, facts: Sequence[Fact]) -> tuple[str, ...]:
        """What the unedited model says; asked once for every prompt and every state of the weights."""
        base = self.lab.fingerprint()
        new = [fact for fact in facts if (base, fact.text) not in self.known]
        if new:
            said = zip(new, answers(self.lab, new), strict=True)
            self.known.update({(base, fact.text): text for fact, text in said})
        return tuple(self.known[base, fact.text] for fact in facts)


def answers(lab: Lab, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The model's greedy answers to the facts' prompts, up to the end of the sentence."""
    texts = lab.generate([fact.text for fact in facts], ANSWER_TOKENS)
    return tuple(first_words(text[len(fact.text) :]) for text, fact in zip(texts, facts, strict=True))


def first_words(text: str) -> str:
    """An answer without the sentences behind it."""
    return re.split(r"[.,?!;]?\s*\n|[.,?!;](?:\s|$)", text.strip(), maxsplit=1)[0]


def likeliest(lab: Lab, prompt: str, k: int) -> pd.DataFrame:
    """The k likeliest answers to a prompt, in words: ``continuation`` and ``probability``."""
    found = lab.ask(prompt, k)
    return found.assign(continuation=[first_words(text) for text in found["continuation"]])
