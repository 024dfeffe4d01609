"""The router, live: type a prompt, see which model answers, and why."""

import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, choice, counted, slider, typed
from kedit_lab.show.states.routing import VOTERS, RouterResult, RouterState


class RouterPanel(Panel):
    """Type a prompt (or choose an example): the nearest prompts vote whether the edited or the unedited model answers.

    The model carries ``size`` edits by ``method``; both models' answers are shown beside each other.
    """

    figure_height = "380px"

    def __init__(self, lab: Lab, prompt: str = "", k: int = 2, size: int = 6, seed: int = 0,
                 method: str = "memit") -> None:  # fmt: skip
        state = RouterState(lab, prompt, k, size, seed, method)
        state.check()
        self.prompt = typed(state.prompt, "prompt", "The beginning of a sentence; press Enter", "620px")
        self.k = slider(k, VOTERS, "voters", "How many of the nearest prompts vote (arrow keys)")
        self.example = choice(None, [("choose one …", None), *((text, text) for text in state.examples())], "examples",
                              "Prompts worth trying", "620px")  # fmt: skip
        super().__init__(state, {"prompt": self.prompt, "k": self.k}, [[self.prompt, self.k], [self.example]])
        self.example.observe(self.take, "value")

    def take(self, change: dict) -> None:
        """An example was chosen: it becomes the prompt."""
        if change["new"] is not None:
            self.prompt.value = change["new"]

    def doing(self) -> str:
        return f"asking both models ({self.settings()})"

    def settings(self) -> str:
        return f"{self.state.prompt!r}, {self.state.k} voters, {counted(self.state.size)} edited"

    def sentence(self, result: RouterResult) -> str:
        side = "edited" if result.decision.edited else "unedited"
        answer = getattr(result, side)["continuation"].iloc[0]
        sides = [f"{count} {name}" for name, count in self.voters(result).value_counts(sort=False).items()]
        count = len(result.decision.votes)
        return (
            f"The {side} model answers “{result.prompt.strip()}” with “{answer}”: of the {count} nearest prompts "
            f"{' and '.join(sides)} vote, weighted by exp(1 + cosine)."
        )

    def voters(self, result: RouterResult) -> pd.Series:
        """The sides of the prompts that vote."""
        return result.nearest.loc[result.nearest["votes"] == "yes", "side"]

    def to_figure(self) -> Figure:
        """The nearest prompts with their weights, and where the prompt goes."""
        return live.routes(self.result.nearest, self.result.decision.edited)

    def to_frame(self) -> pd.DataFrame:
        """The nearest prompts: ``prompt``, ``side``, ``cosine``, ``weight`` and whether it ``votes``."""
        return self.result.nearest

    def answers(self) -> pd.DataFrame:
        """The likeliest answers of both models with their probabilities."""
        told = {name: getattr(self.result, name) for name in ("unedited", "edited")}
        columns = {name: frame["continuation"] for name, frame in told.items()}
        return pd.DataFrame(columns).assign(
            **{f"P({name})": frame["probability"] for name, frame in told.items()}
        )[["unedited", "P(unedited)", "edited", "P(edited)"]]  # fmt: skip

    def tables(self) -> dict[str, pd.DataFrame]:
        side = "edited" if self.result.decision.edited else "unedited"
        return {f"What the models say (the {side} one answers)": self.answers(), "Nearest prompts": self.to_frame()}
