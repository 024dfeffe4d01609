"""The table of methods: every editor is a row that names its pieces, its paper and its published values.

A recipe says how facts are grouped, which target value each group gets, how the residual is spread over layers, how it
is solved for, and what is done to the result. Values that depend on the model stand in ``published.py``.
"""

from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

import pandas as pd

from kedit_lab.edit.published import SHAPES, fallback, published
from kedit_lab.edit.solvers import SOLVERS, SPREADS
from kedit_lab.model.arch import Arch
from kedit_lab.model.tokens import RULES

GROUPS = ("each", "subject")
TARGETS = ("nll-block",)
UNITS = ("absolute", "hidden")


@dataclass(frozen=True)
class Recipe:
    """A composition of group x target x spread x solver, with its numbers.

    ``lr`` is Adam's step size, in units of the residual stream ("absolute") or of ‖h‖/√d_model ("hidden"); ``clamp``
    bounds ‖δ‖ in units of ‖h‖; ``lam`` weighs the preserved keys C; ``stop`` ends a group's optimisation.
    """

    name: str
    paper: str = ""
    notes: str = ""
    group: str = "each"
    target: str = "nll-block"
    spread: str = "1/m"
    solver: str = "ridge"
    token: str = "subject_last"
    layers: tuple[int, ...] = ()
    lam: float = 15000.0
    steps: int = 25
    lr: float = 0.5
    lr_unit: str = "absolute"
    clamp: float = 0.75
    decay: float = 0.5
    kl: float = 0.0625
    stop: float = 0.05
    prefixes: int = 5
    prefix_length: int = 10
    values: str = ""

    def __post_init__(self) -> None:
        choices = {"group": GROUPS, "target": TARGETS, "spread": tuple(SPREADS), "solver": tuple(SOLVERS),
                   "token": RULES, "lr_unit": UNITS}  # fmt: skip
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}")
        lowest = {
            "lam": 0,
            "lr": 0,
            "clamp": 0,
            "decay": 0,
            "kl": 0,
            "stop": 0,
            "steps": 1,
            "prefixes": 0,
            "prefix_length": 1,
        }
        for field, low in lowest.items():
            seen = getattr(self, field)
            if not isinstance(seen, int | float) or isinstance(seen, bool) or not low <= seen < inf:
                raise ValueError(f"{field} is {seen!r}; it must be a finite number of at least {low}")
        for field in ("steps", "prefixes", "prefix_length"):
            if not isinstance(getattr(self, field), int):
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be a whole number")
        if not isinstance(self.layers, tuple | list) or not all(isinstance(layer, int) for layer in self.layers):
            raise ValueError(f"layers is {self.layers!r}; give a tuple of layers, such as (2,)")
        object.__setattr__(self, "layers", tuple(self.layers))
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers is {self.layers}; give each layer once, in ascending order")

    def with_(self, **overrides: Any) -> "Recipe":
        """This recipe with some fields changed; an unknown field raises a ValueError that lists them all."""
        known = [f.name for f in fields(self)]
        for name in overrides:
            if name not in known:
                raise ValueError(f"recipe {self.name!r} has no field {name!r}; its fields are {', '.join(known)}")
        return replace(self, **overrides)

    def on(self, arch: Arch, **overrides: Any) -> "Recipe":
        """This recipe for a model, with some fields changed; layers checked.

        A recipe that names no layers takes the values published for a model of this shape, or a labelled fallback.
        """
        shape = (arch.layers, arch.d_model, arch.d_k)
        known = {} if self.layers else published(self.name, shape) or fallback(arch.layers)
        recipe = self.with_(**known | overrides)
        if not recipe.layers:
            raise ValueError("layers is (); name at least one layer, or leave the field out")
        return recipe.with_(layers=tuple(arch.layer(layer) for layer in recipe.layers))


MEMIT = Recipe(
    "memit",
    "Meng et al. 2023, MEMIT",
    "follows the reference code: KL read at the subject's last token; decay·‖δ‖/‖h‖²; key average half bare prompt",
)
TABLE = {
    recipe.name: recipe
    for recipe in (
        MEMIT,
        MEMIT.with_(
            name="memit-merge",
            paper="MEMIT-Merge, Eq. 3",
            group="subject",
            notes="one value per subject; the paper leaves the reduction open: mean over the group's facts, each "
            "normalised by its own length; duplicate key columns are kept; one drift row per group",
        ),
    )
}


def find(recipe: str | Recipe, **overrides: Any) -> Recipe:
    """A recipe by name or as it is, with fields overridden; an unknown name raises a ValueError that lists them all."""
    if isinstance(recipe, str):
        if recipe not in TABLE:
            raise ValueError(f"unknown recipe {recipe!r}; the recipes are {', '.join(TABLE)}")
        recipe = TABLE[recipe]
    return recipe.with_(**overrides)


def recipes(shape: str | None = None) -> pd.DataFrame:
    """The table of methods: pieces, paper, notes, and the values for a published model shape ("lab" unless given)."""
    named = {name: key for key, name in SHAPES.items()}
    if (shape or "lab") not in named:
        raise ValueError(f"unknown shape {shape!r}; values are known for {', '.join(named)}")
    rows = []
    for recipe in TABLE.values():
        values = published(recipe.name, named[shape or "lab"]) or {"values": "none published for this shape"}
        rows.append(vars(recipe.with_(**values)))
    return pd.DataFrame(rows).set_index("name")
