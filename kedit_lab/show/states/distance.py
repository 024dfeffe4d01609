"""What the AKD panel shows: how far apart the keys of a batch are, for a template, kind of batch and layer."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.extract.keys import keys
from kedit_lab.facts.world import RELATION_FIRST, SUBJECT_FIRST
from kedit_lab.measure.geometry import akd
from kedit_lab.show.states.base import State, among
from kedit_lab.study.collision import SUBJECTS, draw
from kedit_lab.types import Fact

TEMPLATES = {"subject first": SUBJECT_FIRST, "relation first": RELATION_FIRST}
SIZES = range(2, 21)


@dataclass(frozen=True)
class AkdResult:
    """A batch, the distances between its keys at one layer, and the average key distance at every layer."""

    at: tuple[str, str]
    layer: int
    facts: tuple[Fact, ...]
    distance: Float[np.ndarray, "facts facts"]
    akd: tuple[float, ...]


@dataclass
class AkdState(State):
    """``size`` facts about one subject ("same") or many ("distinct"), asked with a ``template``, seen in a ``layer``.

    Keys are read at all layers at once, without an edit; ``read`` keeps them by what they were read for.
    """

    template: str = "subject first"
    subjects: str = "same"
    layer: int = 2
    size: int = 8
    seed: int = 0
    read: dict[tuple, dict[int, Tensor]] = field(default_factory=dict, repr=False, kw_only=True)
    tried: dict[tuple[str, str, int, int], tuple[float, ...]] = field(default_factory=dict, repr=False, kw_only=True)

    def check(self) -> None:
        """Raise a ValueError for a batch or layer that is not there."""
        among("template", self.template, TEMPLATES)
        among("subjects", self.subjects, SUBJECTS)
        among("size", self.size, SIZES)
        among("layer", self.layer, range(self.lab.arch.layers))

    def facts(self) -> list[Fact]:
        """The batch, asked with the template."""
        asked = TEMPLATES[self.template]
        facts = draw(self.subjects, self.size, self.seed)
        return [replace(fact, prompt=asked.replace("{s}", "{}").replace("{r}", fact.relation)) for fact in facts]

    def run(self) -> AkdResult:
        """Read the keys, measure their distances."""
        self.check()
        facts = self.facts()
        at = (self.lab.fingerprint(), self.template, self.subjects, self.size, self.seed)
        if at not in self.read:
            self.read[at] = keys(self.lab, facts, list(range(self.lab.arch.layers)), prefixes=None)
        self.watch()
        found = self.read[at]
        distances = tuple(akd(found[layer]) for layer in range(self.lab.arch.layers))
        self.tried[at[1:]] = distances
        k = found[self.layer].double()
        # from differences, as akd does: dot products lose keys that nearly coincide to rounding
        apart = torch.cdist(k, k, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        return AkdResult((self.template, self.subjects), self.layer, tuple(facts), apart, distances)

    def history(self) -> pd.DataFrame:
        """What was tried with this size and seed: ``template``, ``subjects``, ``layer``, ``akd``."""
        now = [(at, found) for at, found in self.tried.items() if at[2:] == (self.size, self.seed)]
        rows = [
            {"template": at[0], "subjects": at[1], "layer": layer, "akd": distance}
            for at, found in now
            for layer, distance in enumerate(found)
        ]
        return pd.DataFrame(rows, columns=["template", "subjects", "layer", "akd"])
