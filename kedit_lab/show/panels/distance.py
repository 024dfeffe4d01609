"""Key distances, live: why "The name of the r of s is" keeps the keys of one subject apart."""

import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.model.lab import Lab
from kedit_lab.show import live
from kedit_lab.show.panels.base import Panel, choice, counted, seed_box, slider
from kedit_lab.show.states.distance import SIZES, TEMPLATES, AkdResult, AkdState
from kedit_lab.show.style import SUBJECTS


class AkdPanel(Panel):
    """Choose a template, one subject or many, and a layer; see the distances between keys and their average (AKD)."""

    table_height = "180px"

    def __init__(self, lab: Lab, template: str = "subject first", subjects: str = "same", layer: int = 2,
                 size: int = 8, seed: int = 0) -> None:  # fmt: skip
        state = AkdState(lab, template, subjects, layer, size, seed)
        state.check()
        shown = {f"{name}: “{text.replace('{s}', 's').replace('{r}', 'r')}”": name for name, text in TEMPLATES.items()}
        names = {text: name for name, text in SUBJECTS.items()}
        self.template = choice(template, shown.items(), "template", "How the facts are asked", "480px")
        self.subjects = choice(subjects, names.items(), "facts about", "Whose facts they are")
        self.layer = slider(layer, range(lab.arch.layers), "layer", "Where the keys are read (arrow keys)")
        self.size = slider(size, SIZES, "facts", "Facts in the batch (arrow keys)")
        self.seed = seed_box(seed)
        controls = {"template": self.template, "subjects": self.subjects, "layer": self.layer, "size": self.size,
                    "seed": self.seed}  # fmt: skip
        super().__init__(state, controls, [[self.template, self.subjects], [self.layer, self.size, self.seed]])

    def doing(self) -> str:
        return f"reading the keys of {self.settings()}"

    def settings(self) -> str:
        now = self.state
        return f"{counted(now.size)} about {SUBJECTS[now.subjects]}, {now.template}, layer {now.layer}, seed {now.seed}"

    def sentence(self, result: AkdResult) -> str:
        template, subjects = result.at
        here, count = result.akd[result.layer], len(result.facts)
        verdict = "the keys coincide" if here < 1e-3 * (1 + max(result.akd)) else "the keys differ"
        return (
            f"{count} facts about {SUBJECTS[subjects]}, {template}: in layer {result.layer} keys are {here:.2f} apart "
            f"on average (AKD); {verdict}. First prompt: “{result.facts[0].text}”."
        )

    def to_figure(self) -> Figure:
        """Distances between all keys at the layer, and AKD over the layers for everything tried on this batch."""
        result = self.result
        return live.distances(result.distance, self.state.history(), result.at, result.layer)

    def to_frame(self) -> pd.DataFrame:
        """AKD, one row per template and kind of batch that was tried, one column per layer."""
        _ = self.result
        wide = self.state.history().pivot(index=["template", "subjects"], columns="layer", values="akd")
        wide.columns = [f"layer {layer}" for layer in wide.columns]
        return wide.reset_index()
