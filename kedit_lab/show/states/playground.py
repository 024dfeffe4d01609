"""What the playground does: edits stand on each other, are undone and redone, and the model is asked before and after.

The edits are in the weights only while the model is asked or edited; between two clicks the lab is as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipes import TABLE
from kedit_lab.edit.run import edit
from kedit_lab.model.lab import Lab
from kedit_lab.show.states.base import State, among
from kedit_lab.show.states.batch import likeliest
from kedit_lab.types import Fact

ANSWERS = 5
TOKENS = 20  # of the text that follows
ANY = "(anything)"  # stands for the target where only the question counts
ACTIONS = ("ask", "edit", "undo", "redo", "reset")


@dataclass
class History:
    """Edits in the order in which they were made; the first ``at`` of them are in effect."""

    edits: list[Edit] = field(default_factory=list)
    at: int = 0

    def add(self, made: Edit) -> None:
        """One more, computed on those in effect; those that were undone are gone."""
        self.edits[self.at :] = [made]
        self.at += 1

    def go(self, to: int) -> None:
        """Have the first ``to`` in effect. Raises a ValueError where there is nothing to undo or redo."""
        if not 0 <= to <= len(self.edits):
            raise ValueError(f"there is nothing to {'undo' if to < 0 else 'redo'}")
        self.at = to

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The edits in effect are in the weights inside the context, and gone behind it, also after an exception."""
        done: list[Edit] = []
        try:
            for made in self.edits[: self.at]:
                done.append(made.apply())
            yield
        finally:
            for made in reversed(done):
                made.undo()

    @property
    def frame(self) -> pd.DataFrame:
        """One row per edit: ``edit``, ``method``, ``prompt``, ``target``, ``state``."""
        rows = [
            (i + 1, made.recipe.name, made.facts[0].text, made.facts[0].target_new, "in" if i < self.at else "undone")
            for i, made in enumerate(self.edits)
        ]
        return pd.DataFrame(rows, columns=["edit", "method", "prompt", "target", "state"])


@dataclass(frozen=True)
class PlaygroundResult:
    """What both models say to a prompt: the likeliest answers, and a text."""

    prompt: str
    before: pd.DataFrame
    after: pd.DataFrame
    text_before: str
    text_after: str
    edits: int


@dataclass
class PlaygroundState(State):
    """A fact to write (``subject``, ``prompt`` with {} in it, ``target``), a ``method``, and an ``action`` to do."""

    subject: str = "John Smith"
    prompt: str = "{}'s native language is"
    target: str = "Greek"
    method: str = "memit"
    action: str = "ask"
    past: History = field(default_factory=History, repr=False, kw_only=True)

    def check(self) -> None:
        """Raise a ValueError for a method or action that does not exist, or a prompt that cannot be asked."""
        among("method", self.method, TABLE)
        among("action", self.action, ACTIONS)
        self.fact()

    def fact(self) -> Fact:
        """The fact as typed; what is wrong with it is said by a ValueError."""
        return Fact(self.subject.strip(), self.prompt.strip(), self.target.strip() if self.action == "edit" else ANY)

    def run(self) -> PlaygroundResult:
        """Do what is to be done, then ask the unedited and the edited model."""
        if self.action == "reset":
            self.past.edits.clear()
            self.past.go(0)
        elif self.action in ("undo", "redo"):
            self.past.go(self.past.at + (1 if self.action == "redo" else -1))
        self.check()
        fact = self.fact()
        before = told(self.lab, fact.text)
        self.watch()
        with self.past.applied():
            if self.action == "edit":
                made = edit(self.lab, [fact], self.method, watch=lambda *_: self.watch())
                self.watch()
                with made.applied():
                    after = told(self.lab, fact.text)
            else:
                made, after = None, told(self.lab, fact.text) if self.past.at else before
        if made is not None:
            self.past.add(made)
        return PlaygroundResult(fact.text, before[0], after[0], before[1], after[1], self.past.at)


def told(lab: Lab, prompt: str) -> tuple[pd.DataFrame, str]:
    """(the likeliest answers, a text) of the model as it stands."""
    return likeliest(lab, prompt, ANSWERS), lab.generate([prompt], TOKENS)[0]
