"""The live panel: widgets that set a state, run it and show what it returns. No maths here; see ``show.state``."""

import base64
import html
import io
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import figures
from kedit_lab.show.state import ARMS, SIZES, CollisionResult, CollisionState
from kedit_lab.show.tables import before_after

FIGURE_HEIGHT = "400px"
TABLE_HEIGHT = "300px"


class CollisionPanel:
    """Choose how many facts, about whom and with which method; the model is edited, asked and restored at every change.

    As the value of a cell it is a set of widgets. ``to_figure()`` and ``to_frame()`` give the same without any, for a
    page that is read without a kernel. The settings are ``panel.size``, ``panel.arm`` and ``panel.seed`` (widgets: set
    their ``.value``); what was found is ``panel.result``.
    """

    def __init__(self, lab: Lab, size: int = 10, arm: str = "one subject · memit", seed: int = 0) -> None:
        self.state = CollisionState(lab, size, arm, seed)
        self.state.check()
        self.latest: CollisionResult | None = None
        wide = widgets.Layout(width="440px")
        self.size = widgets.IntSlider(
            size, SIZES[0], SIZES[-1], description="facts", continuous_update=False, layout=wide,
            tooltip="How many facts are edited at once; arrow keys move the slider",
        )  # fmt: skip
        self.arm = widgets.ToggleButtons(
            options=list(ARMS), value=arm, description="batch", style={"button_width": "210px"},
            tooltip="Whose facts are edited, and with which method",
        )  # fmt: skip
        self.seed = widgets.BoundedIntText(
            seed, 0, 999, description="seed", layout=widgets.Layout(width="180px"),
            tooltip="Another seed draws another subject, other relations and other objects",
        )  # fmt: skip
        self.status = widgets.HTML(layout=widgets.Layout(min_height="56px"))
        self.picture = widgets.HTML(layout=widgets.Layout(height=FIGURE_HEIGHT, overflow="auto"))
        self.table = widgets.HTML(layout=widgets.Layout(height=TABLE_HEIGHT, overflow="auto"))
        row = widgets.HBox([self.size, self.seed], layout=widgets.Layout(flex_flow="row wrap"))
        self.view = widgets.VBox([self.arm, row, self.status, self.picture, self.table])
        for control in (self.size, self.arm, self.seed):
            control.observe(self.update, "value")

    @property
    def result(self) -> CollisionResult:
        """What came out for the present settings; computed if nothing was yet."""
        if self.latest is None:
            self.latest = self.state.run()
        return self.latest

    def update(self, _change: Any = None) -> None:
        """Read the controls, edit again, show; whatever goes wrong is shown as a sentence."""
        self.state.size, self.state.arm, self.state.seed = self.size.value, self.arm.value, self.seed.value
        self.latest = None
        self.say(f"editing {counted(self.state.size)} ({self.state.arm}, seed {self.state.seed}) …")
        try:
            self.show(self.result)
        except Exception as error:
            self.latest = None
            self.picture.value = self.table.value = ""
            reason = str(error) or type(error).__name__
            self.say(f"This did not work: {reason}. The model is unchanged; choose other settings.")

    def show(self, result: CollisionResult) -> None:
        """Put a result into the widgets."""
        self.picture.value = as_image(self.to_figure(), sentence(result))
        self.table.value = self.to_frame().to_html(index=False, border=0, escape=True)
        note = f" {result.collisions[:1].upper()}{result.collisions[1:]}." if result.collisions else ""
        self.say(f"{sentence(result)} ({result.seconds:.1f} s; undone again.){note}")

    def say(self, text: str) -> None:
        """Show a sentence above the figure; screen readers announce it."""
        self.status.value = f'<div role="status" aria-live="polite" style="line-height: 1.4">{html.escape(text)}</div>'

    def to_figure(self) -> Figure:
        """Cosines of the batch's keys, and efficacy against size for everything tried so far, as a figure."""
        result = self.result
        return figures.collision(result.cosine, self.state.history(), (result.arm, result.size, result.seed))

    def to_frame(self) -> pd.DataFrame:
        """What the model said before the edit, what was wanted, and what it says after, one row per fact."""
        return before_after(self.result.frame)

    def __repr__(self) -> str:
        now = self.state
        return f"CollisionPanel({counted(now.size)}, {now.arm}, seed {now.seed}); run this cell to use it"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widgets for a notebook, and a line of text for everything else."""
        if self.latest is None:
            self.update()
        else:
            self.show(self.latest)
        return self.view._repr_mimebundle_(**options) | {"text/plain": repr(self)}


def counted(size: int) -> str:
    """ "1 fact", "10 facts"."""
    return f"{size} fact" if size == 1 else f"{size} facts"


def sentence(result: CollisionResult) -> str:
    """The result in words."""
    held = round(result.efficacy * result.size)
    return (
        f"{result.arm}: {held} of {counted(result.size)} held after the edit (efficacy {result.efficacy:.2f}); "
        f"specificity {result.specificity:.2f}."
    )


def as_image(figure: Figure, text: str) -> str:
    """A figure as an HTML image with an alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" style="max-width: 100%; height: auto">'
