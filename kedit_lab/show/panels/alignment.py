"""Alignment, live: residuals of a batch find their directions while the targets are optimised."""

import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, as_image, choice, counted, seed_box, slider
from kedit_lab.show.states.alignment import DENSITIES, METHODS, SIZES, AlignmentResult, AlignmentState


class AlignmentPanel(Panel):
    """Choose memit or eamet and a batch; see the cosine of every pair's residuals against that of its keys.

    The figure follows the optimisation, a picture at every few steps (``every``); on the dashed line residuals see
    each other as their keys do, and the sum of A(i) says how far from that the batch is.
    """

    table_height = "180px"

    def __init__(self, lab: Lab, method: str = "memit", size: int = 8, per_subject: int = 2, seed: int = 0,
                 every: int = 5) -> None:  # fmt: skip
        state = AlignmentState(lab, method, size, per_subject, seed, every)
        state.check()
        self.method = choice(method, METHODS, "method", "eamet aligns residuals with keys, memit does not")
        self.size = slider(size, SIZES, "facts", "Facts in the batch (arrow keys)")
        self.per_subject = slider(per_subject, DENSITIES, "per subject", "Facts about each subject (arrow keys)")
        self.seed = seed_box(seed)
        controls = {"method": self.method, "size": self.size, "per_subject": self.per_subject, "seed": self.seed}
        super().__init__(state, controls, [[self.method, self.seed], [self.size, self.per_subject]])

    def doing(self) -> str:
        return f"optimising the targets of {self.settings()}"

    def settings(self) -> str:
        now = self.state
        return f"{counted(now.size)}, {now.per_subject} per subject, {now.method}, seed {now.seed}"

    def sentence(self, result: AlignmentResult) -> str:
        return (
            f"{result.method}: after {result.step + 1} steps the sum of A(i) over {len(result.facts)} facts is "
            f"{result.misaligned[-1]:.2f} (0: residuals see each other exactly as their keys do)."
        )

    def glimpse(self, seen: AlignmentResult) -> None:
        """The optimisation as it stands."""
        told = f"{self.doing()}: step {seen.step}, sum of A(i) {seen.misaligned[-1]:.2f} …"
        self.say(told, "busy")
        self.picture.value = as_image(self.drawn(seen), told)

    def drawn(self, result: AlignmentResult) -> Figure:
        """A result beside the other methods' curves on the same batch."""
        past = self.state.history().groupby("method", sort=True)["misaligned"].apply(list).to_dict()
        sums = {method: past[method] for method in METHODS if method in past} | {result.method: result.misaligned}
        return live.alignment(result.key, result.residual, result.related, sums, result.method)

    def to_figure(self) -> Figure:
        """The pairs of the batch as the optimisation left them, and the sum of A(i) at every step."""
        return self.drawn(self.result)

    def to_frame(self) -> pd.DataFrame:
        """One row per method tried on this batch: its ``steps`` and the sum of A(i) at the first and the last one."""
        _ = self.result
        told = self.state.history().groupby("method", sort=False)["misaligned"].agg(["size", "first", "last"])
        return told.reset_index().set_axis(["method", "steps", "ΣA(i), first step", "ΣA(i), last step"], axis=1)
