"""Density, live: how many facts a subject has in a batch, and what that costs."""

import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, choice, counted, seed_box, slider
from kedit_lab.show.states.density import DENSITIES, SIZES, DensityResult, DensityState
from kedit_lab.show.tables import before_after
from kedit_lab.study.load import METHODS
from kedit_lab.study.sweep import MODES


class DensityPanel(Panel):
    """Choose facts per subject, their number, the method, and whether they are edited at once or one after another.

    Shown are the cosines of the batch's keys, and efficacy and specificity of everything that was tried.
    """

    def __init__(self, lab: Lab, size: int = 10, per_subject: int = 2, mode: str = "batch", method: str = "memit",
                 seed: int = 0) -> None:  # fmt: skip
        state = DensityState(lab, size=size, per_subject=per_subject, mode=mode, method=method, seed=seed)
        state.check()
        self.per_subject = slider(per_subject, DENSITIES, "per subject", "Facts about each subject (arrow keys)")
        self.size = slider(size, SIZES, "facts", "Facts in the batch (arrow keys)")
        self.method = choice(method, METHODS, "method", "How they are edited")
        self.mode = choice(mode, MODES, "mode", "At once, or one after another on the model as edited so far")
        self.seed = seed_box(seed)
        controls = {"per_subject": self.per_subject, "size": self.size, "method": self.method, "mode": self.mode,
                    "seed": self.seed}  # fmt: skip
        super().__init__(state, controls, [[self.per_subject, self.size, self.seed], [self.method, self.mode]])

    def doing(self) -> str:
        return f"editing {self.settings()}"

    def settings(self) -> str:
        now = self.state
        return f"{counted(now.size)}, {now.per_subject} per subject, {now.method}, {now.mode}, seed {now.seed}"

    def sentence(self, result: DensityResult) -> str:
        method, mode, per_subject, size, _ = result.at
        held = round(result.efficacy * size)
        return (
            f"{method}, {mode}, {per_subject} per subject: {held} of {counted(size)} held (efficacy "
            f"{result.efficacy:.2f}); specificity {result.specificity:.2f}. The model is unedited again."
        )

    def to_figure(self) -> Figure:
        """The cosines of the batch's keys; efficacy and specificity against facts per subject."""
        result = self.result
        return live.density(result.cosine, self.state.history(), result.at)

    def to_frame(self) -> pd.DataFrame:
        """What the model said before the edit, what was wanted, and what it says after, one row per fact."""
        return before_after(self.result.frame)
