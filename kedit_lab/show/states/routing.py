"""What the router panel shows: which model a prompt goes to, the prompts that decided it, and what both models say."""

from dataclasses import dataclass, field, replace

import pandas as pd

from kedit_lab.edit.router import Decision, Router
from kedit_lab.facts.sets import by_density
from kedit_lab.show.states.base import State, among
from kedit_lab.show.states.batch import PREFIXES, likeliest
from kedit_lab.study.sequence import Run, lab_reference, sequence
from kedit_lab.types import Fact

VOTERS = range(1, 6)
SIZES = range(1, 21)
SHOWN = 7  # nearest prompts
ANSWERS = 3


@dataclass(frozen=True)
class RouterResult:
    """Where a prompt goes and why, and the likeliest answers of both models."""

    prompt: str
    decision: Decision
    nearest: pd.DataFrame
    unedited: pd.DataFrame
    edited: pd.DataFrame


@dataclass
class RouterState(State):
    """A ``prompt``, asked of a model with ``size`` edits and of the unedited one; the ``k`` nearest prompts vote.

    The corpus holds the edited prompts and as many unrelated ones: the same relations of other subjects.
    """

    prompt: str = ""
    k: int = 2
    size: int = 6
    seed: int = 0
    method: str = "memit"
    runs: dict[tuple, Run] = field(default_factory=dict, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        self.prompt = self.prompt or self.facts()[0].text

    def check(self) -> None:
        """Raise a ValueError for a prompt that cannot be asked, or numbers out of range."""
        among("k", self.k, VOTERS)
        among("size", self.size, SIZES)
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; type the beginning of a sentence")

    def facts(self) -> list[Fact]:
        """What is edited."""
        return by_density(self.size, 1, self.seed)

    def unrelated(self) -> list[str]:
        """Prompts about other subjects, one for each fact that has a neighbour."""
        return [fact.neighborhood[0].prompt for fact in self.facts() if fact.neighborhood]

    def examples(self) -> list[str]:
        """Prompts worth trying: edited ones, their paraphrases and consequences, and neighbours."""
        tried = []
        for fact in self.facts()[:3]:
            far = [fact.neighborhood[-1].prompt] if fact.neighborhood else []
            tried += [fact.text, *fact.paraphrases[:2], *(probe.prompt for probe in fact.portability[:1]), *far]
        return list(dict.fromkeys(tried))

    def run(self) -> RouterResult:
        """Route the prompt and ask both models; the edits are computed once."""
        self.check()
        at = (self.lab.fingerprint(), self.size, self.seed, self.method)
        facts = self.facts()
        if at not in self.runs:
            brief = lab_reference(self.lab, 1)  # nobody reads the health here
            self.watch()
            self.runs[at] = sequence(self.lab, [facts], self.method, reference=brief, prefixes=PREFIXES)
        self.watch()
        router = Router.of([fact.text for fact in facts], self.unrelated(), k=self.k)
        unedited = likeliest(self.lab, self.prompt, ANSWERS)
        self.watch()
        with self.runs[at].applied():
            edited = likeliest(self.lab, self.prompt, ANSWERS)
        return RouterResult(self.prompt, router.route(self.prompt), self.nearest(router), unedited, edited)

    def nearest(self, router: Router) -> pd.DataFrame:
        """The nearest prompts, those that vote first: ``prompt``, ``side``, ``cosine``, ``weight``, ``votes``."""
        many = replace(router, k=max(SHOWN, self.k)).route(self.prompt).votes
        side = many["label"].map({1: "edited", -1: "unrelated"})
        votes = ["yes" if i < self.k else "no" for i in range(len(many))]
        return pd.DataFrame(
            {"prompt": many["prompt"], "side": side, "cosine": many["cosine"], "weight": many["beta"], "votes": votes}
        )
