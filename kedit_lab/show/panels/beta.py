"""β, live: which residuals arrive at a fact's key."""

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, counted, plain, seed_box, slider
from kedit_lab.show.states.beta import DENSITIES, FORMS, SIZES, BetaResult, BetaState
from kedit_lab.types import Fact


class BetaPanel(Panel):
    """Click a fact of a batch and see its row of β: the share of every fact's residual that its key receives.

    ``form`` is the ridge solve with λ and C as memit uses them, or the pseudo-inverse.
    """

    def __init__(self, lab: Lab, fact: int = 0, size: int = 10, per_subject: int = 2, form: str = FORMS[0],
                 seed: int = 0) -> None:  # fmt: skip
        state = BetaState(lab, fact, size, per_subject, form, seed)
        state.check()
        self.fact = widgets.Select(
            options=options(state.facts()), value=fact, rows=6, description="fact",
            tooltip="Click the fact whose row is to be shown (or arrow keys)", layout=widgets.Layout(width="520px"),
        )  # fmt: skip
        self.form = widgets.ToggleButtons(
            options=list(FORMS), value=form, description="solve", style={"button_width": "150px"},
            tooltip="The ridge solve with λ and C, or the pseudo-inverse",
        )  # fmt: skip
        self.size = slider(size, SIZES, "facts", "Facts in the batch (arrow keys)")
        self.per_subject = slider(per_subject, DENSITIES, "per subject", "Facts about each subject (arrow keys)")
        self.seed = seed_box(seed)
        controls = {"fact": self.fact, "form": self.form, "size": self.size, "per_subject": self.per_subject,
                    "seed": self.seed}  # fmt: skip
        super().__init__(state, controls, [[self.fact, self.form], [self.size, self.per_subject, self.seed]])

    def read(self) -> None:
        """Another batch brings other facts to choose from; the number of the chosen one stays if it can."""
        super().read()
        now = options(self.state.facts())
        if tuple(now) != self.fact.options:
            self.state.fact = min(self.state.fact, len(now) - 1)
            self.fact.unobserve(self.update, "value")
            self.fact.options, self.fact.value = now, self.state.fact
            self.fact.observe(self.update, "value")

    def doing(self) -> str:
        return f"solving for β of {self.settings()}"

    def settings(self) -> str:
        now = self.state
        return f"fact {now.fact + 1} of {counted(now.size)}, {now.per_subject} per subject, {now.form}, seed {now.seed}"

    def sentence(self, result: BetaResult) -> str:
        shares = result.frame.groupby("who")["β"].sum()
        told = [f"{plain(shares.get(who, 0.0))} from {of}" for who, of in
                (("its subject", "others of its subject"), ("another subject", "other subjects"))]  # fmt: skip
        solve = f"{result.form} with λ = {result.lam:g}" if result.lam else result.form
        own = f"fact {result.fact + 1} receives {plain(shares['itself'])} of its own residual"
        return f"{solve}: {own}, {', '.join(told)}."

    def to_figure(self) -> Figure:
        """β of the batch with the fact's row framed, and the row as bars."""
        result = self.result
        return live.beta_row(result.beta, result.frame, result.fact, result.form)

    def to_frame(self) -> pd.DataFrame:
        """The fact's row: every fact with its prompt, its β, and who it is to the chosen one."""
        return self.result.frame


def options(facts: tuple[Fact, ...]) -> list[tuple[str, int]]:
    """The facts of a batch as the choices of a list."""
    return [(f"{i + 1}: {fact.text}", i) for i, fact in enumerate(facts)]
