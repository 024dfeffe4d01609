"""The collision, live: how many facts, about one subject or many, with or without merging."""

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import figures
from kedit_lab.show.panels.base import Panel, counted, seed_box, slider
from kedit_lab.show.states.collision import ARMS, SIZES, CollisionResult, CollisionState
from kedit_lab.show.tables import before_after


class CollisionPanel(Panel):
    """Choose how many facts, about whom and with which method; the model is edited, asked and restored at every change.

    As the value of a cell it is a set of widgets. ``to_figure()`` and ``to_frame()`` give the same without any, for a
    page that is read without a kernel. The settings are ``panel.size``, ``panel.arm`` and ``panel.seed`` (widgets: set
    their ``.value``); what was found is ``panel.result``.
    """

    def __init__(self, lab: Lab, size: int = 10, arm: str = "one subject · memit", seed: int = 0) -> None:
        state = CollisionState(lab, size, arm, seed)
        state.check()
        self.size = slider(size, SIZES, "facts", "How many facts are edited at once (arrow keys)", "440px")
        self.arm = widgets.ToggleButtons(
            options=list(ARMS), value=arm, description="batch", style={"button_width": "210px"},
            tooltip="Whose facts are edited, and with which method",
        )  # fmt: skip
        self.seed = seed_box(seed)
        controls = {"size": self.size, "arm": self.arm, "seed": self.seed}
        super().__init__(state, controls, [[self.arm], [self.size, self.seed]])

    def doing(self) -> str:
        return f"editing {counted(self.state.size)} ({self.state.arm}, seed {self.state.seed})"

    def settings(self) -> str:
        return f"{counted(self.state.size)}, {self.state.arm}, seed {self.state.seed}"

    def sentence(self, result: CollisionResult) -> str:
        held = round(result.efficacy * result.size)
        note = f" {result.collisions[:1].upper()}{result.collisions[1:]}." if result.collisions else ""
        return (
            f"{result.arm}: {held} of {counted(result.size)} held after the edit (efficacy {result.efficacy:.2f}); "
            f"specificity {result.specificity:.2f} ({result.seconds:.1f} s; undone again).{note}"
        )

    def to_figure(self) -> Figure:
        """Cosines of the batch's keys, and efficacy against size for everything tried so far, as a figure."""
        result = self.result
        return figures.collision(result.cosine, self.state.history(), (result.arm, result.size, result.seed))

    def to_frame(self) -> pd.DataFrame:
        """What the model said before the edit, what was wanted, and what it says after, one row per fact."""
        return before_after(self.result.frame)
