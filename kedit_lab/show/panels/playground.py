"""The playground: write any fact with any method, look at the answers, undo, redo, start again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.edit.recipes import TABLE
from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, choice, counted, typed
from kedit_lab.show.panels.gate import gate
from kedit_lab.show.states.playground import ANSWERS, PlaygroundResult, PlaygroundState

BUTTONS = {
    "edit": ("Edit", "pencil", "Compute this edit on top of those in effect"),
    "undo": ("Undo", "undo", "Take the last edit out"),
    "redo": ("Redo", "repeat", "Put the edit back that was taken out"),
    "reset": ("Reset", "trash", "Forget all edits"),
}


class Playground(Panel):
    """Type a subject, a prompt with {} in the subject's place and a target, and edit with any method of the table.

    Edits stand on each other; undo and redo go through them. The weights carry them only while the panel asks or
    edits, so no other cell sees them; ``with panel.applied():`` puts them in for a cell. A method that trains cannot
    be stopped before its training ends.
    """

    figure_height = "310px"

    def __init__(self, lab: Lab, subject: str = "John Smith", prompt: str = "{}'s native language is",
                 target: str = "Greek", method: str = "memit") -> None:  # fmt: skip
        state = PlaygroundState(lab, subject, prompt, target, method)
        state.check()
        self.todo = "ask"
        self.subject = typed(subject, "subject", "Whom or what it is about", "380px")
        self.prompt = typed(prompt, "prompt", "{} stands for the subject; ends before the answer", "520px")
        self.target = typed(target, "target", "What the model shall say", "380px")
        self.method = choice(method, list(TABLE), "method", "Any recipe of kl.recipes()")
        self.buttons = {name: self.button(name) for name in BUTTONS}
        rows = [[self.subject, self.prompt], [self.target, self.method], list(self.buttons.values())]
        super().__init__(state, {"subject": self.subject, "prompt": self.prompt}, rows)

    def button(self, name: str) -> widgets.Button:
        """A button that does one of the actions."""
        text, icon, help = BUTTONS[name]
        made = widgets.Button(description=text, icon=icon, tooltip=help, layout=widgets.Layout(width="110px"))
        made.on_click(lambda _: self.act(name))
        return made

    def act(self, action: str) -> None:
        """Edit, undo, redo or reset with what is typed now, as the buttons do."""
        self.todo = action
        self.update()

    def read(self) -> None:
        super().read()
        self.state.target, self.state.method = self.target.value, self.method.value
        self.state.action, self.todo = self.todo, "ask"

    def update(self, _change: Any = None) -> None:
        super().update()
        self.state.action = "ask"  # what was begun is done once

    def doing(self) -> str:
        verb = {"edit": "editing with " + self.state.method}.get(self.state.action, self.state.action)
        return f"{verb}: {self.settings()}"

    def settings(self) -> str:
        return (
            f"{self.state.prompt.replace('{}', self.state.subject)!r}, {counted(self.state.past.at, 'edit')} in effect"
        )

    def sentence(self, result: PlaygroundResult) -> str:
        before, after = (frame["continuation"].iloc[0] for frame in (result.before, result.after))
        return (
            f"{counted(result.edits, 'edit')} in effect. “{result.prompt}”: the unedited model says “{before}”, "
            f"the edited one “{after}”. No other cell sees the edits."
        )

    def show(self, result: PlaygroundResult) -> None:
        self.able()
        super().show(result)

    def fail(self, job: Any, text: str) -> None:
        self.able()
        super().fail(job, text)

    def able(self) -> None:
        """Only what can be done can be pressed."""
        past = self.state.past
        self.buttons["undo"].disabled = past.at == 0
        self.buttons["redo"].disabled = past.at == len(past.edits)
        self.buttons["reset"].disabled = not past.edits

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The edits in effect are in the lab's weights inside the context, and gone behind it."""
        with gate().turn(self.cancel, lambda: None), self.state.past.applied():
            yield

    def to_figure(self) -> Figure:
        """The likeliest answers of the unedited and the edited model."""
        result = self.result
        titles = ("unedited", f"with {counted(result.edits, 'edit')}")
        return live.answers(result.before, result.after, titles)

    def to_frame(self) -> pd.DataFrame:
        """The likeliest answers before and after, with their probabilities."""
        before, after = (frame.reset_index(drop=True) for frame in (self.result.before, self.result.after))
        return pd.DataFrame({"rank": range(1, ANSWERS + 1), "before": before["continuation"],
                             "P before": before["probability"], "after": after["continuation"],
                             "P after": after["probability"]})  # fmt: skip

    def history(self) -> pd.DataFrame:
        """One row per edit: ``edit``, ``method``, ``prompt``, ``target``, and whether it is "in" or "undone"."""
        return self.state.past.frame

    def tables(self) -> dict[str, pd.DataFrame]:
        result = self.result
        texts = pd.DataFrame({"model": ["unedited", "edited"], "text": [result.text_before, result.text_after]})
        return {"Answers": self.to_frame(), "Text": texts, "History": self.history()}
