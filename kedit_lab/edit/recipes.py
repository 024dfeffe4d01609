"""The table of methods: every editor is a row that names its pieces, its paper and what was chosen.

A row is a ``Recipe`` (locate-then-edit) or a ``Tuning`` (gradient training); values that depend on the model stand in
``published.py``. Where a paper's text and its code differ, the row follows the code and a second row the text.
"""

from typing import Any

import pandas as pd

from kedit_lab.edit.published import SHAPES, published
from kedit_lab.edit.recipe import AnyRecipe, Hyper, Neurons, Recipe, Tuning

MEMIT = Recipe(
    "memit",
    "Meng et al. 2023, MEMIT",
    "follows the reference code: KL read at the subject's last token; decay·‖δ‖/‖h‖²; key average half bare prompt",
)
PMET = Recipe(
    "pmet",
    "Li et al. 2024, PMET",
    "δ on attention and MLP outputs, only the MLP's is written; residual spread as 1/√m, as the code does",
    target="attention+mlp",
    spread="1/sqrt(m)",
    settled=0.1,
)
ALPHAEDIT = Recipe(
    "alphaedit",
    "Fang et al. 2025, AlphaEdit",
    "code: threshold 0.02 and γ 10 (the paper's text: 0.01 and 1, row alphaedit-paper); solved in float64, not float32",
    solver="null-space",
    memory=True,
)
EAMET = Recipe(
    "eamet",
    "EAMET, Eqs. 11-14",
    "code: KL(keys ‖ residuals) at τ 0.07, weighted MSE over the top 50, δ starts along h with the key's norm, which "
    "also bounds it; found in blocks: facts with close keys (similarity) one behind the other, others at once, as they "
    "stand (block=1: all one by one, in order); the lab model's values take several steps of Adam a pass "
    "(reuse), and their stop looks at the likelihood alone",
    align="keys",
    start="hidden",
    bound="key",
    clamp=2.0,
    decay=0.0,
    stop=0.01,
)
ROME = Recipe(
    "rome",
    "Meng et al. 2022, ROME",
    "equality at the bare key, direction C⁻¹k of the averaged key; facts are written one after another, their values "
    "found at once on the unedited model (block=1: each on the model as edited so far, as the code does)",
    target="mlp",
    spread="whole",
    solver="equality",
    average="uniform",
    met="bare",
    alone=True,
    clamp=4.0,
)
MERGED = (
    "one value per subject; the paper leaves the reduction open: mean over the group's facts, each normalised by its "
    "own length; duplicate key columns are kept; one drift row per group"
)
FT = Tuning("ft", "Zhu et al. 2020; ROME's code", "all target tokens scored at the last prompt token, as in that code",
            objective="prompt_last", batch=64)  # fmt: skip
ROWS: tuple[AnyRecipe, ...] = (
    MEMIT,
    MEMIT.with_(name="memit-merge", paper="MEMIT-Merge, Eq. 3", group="subject", notes=MERGED),
    MEMIT.with_(
        name="memit-seq",
        paper="AlphaEdit's code (MEMIT_seq)",
        notes="memit whose solve also preserves the keys of earlier batches (the shipped code never passes them)",
        memory=True,
    ),
    MEMIT.with_(
        name="memit-last",
        paper="MEMIT-Merge, Limitations",
        notes="key and value at the prompt's last token, where facts of one subject differ",
        token="last",
    ),
    PMET,
    PMET.with_(name="pmet-merge", paper="MEMIT-Merge, Fig. 5", group="subject", notes=f"both δ shared: {MERGED}"),
    ALPHAEDIT,
    ALPHAEDIT.with_(
        name="alphaedit-paper", notes="the paper's text: threshold 0.01, identity weight 1", threshold=0.01, gamma=1.0
    ),
    EAMET,
    EAMET.with_(
        name="eamet-mutual",
        paper="this project",
        notes="eamet whose facts of one block see the later ones too and, where keys are close (similarity), wait for "
        "each other, so that those of one subject settle on one value",
        sees="all",
    ),
    EAMET.with_(
        name="alphaedit-aligned",
        paper="EAMET, Table 9",
        notes="eamet's targets, alphaedit's solve; alignment looks at the current batch only",
        solver="null-space",
        memory=True,
        gamma=1.0,
    ),
    EAMET.with_(
        name="eamet-merge",
        paper="this project",
        notes="eamet's alignment between groups, one joint value per subject as in memit-merge",
        group="subject",
    ),
    ROME,
    ROME.with_(
        name="r-rome",
        paper="Gupta et al. 2024, R-ROME",
        notes="one averaged key in direction, divisor and current output",
        met="mean",
    ),
    Recipe(
        "emmet",
        "Gupta et al. 2024, EMMET",
        "equality relaxed by μ: the same as memit with λ = λ·μ; λ is the code's α",
        spread="whole",
        solver="relaxed",
    ),
    MEMIT.with_(
        name="rect",
        paper="Gu et al. 2024, RECT; AlphaEdit's code",
        notes="keeps the 40 % of entries with the largest |ΔW/W| (RECT's own code keeps 20 %, of ROME's update)",
        post="rect",
    ),
    MEMIT.with_(
        name="prune",
        paper="Ma et al. 2025, PRUNE",
        notes="restrains ΔW's singular values that exceed the largest of W; replaces the update (AlphaEdit's adds)",
        post="prune",
    ),
    FT,
    FT.with_(name="ft-l", notes="ft with every entry of ΔW clamped to ±ε after each step", epsilon=5e-4),
    FT.with_(
        name="ft-m", paper="EasyEdit (FT-M)", notes="teacher-forced loss of the target tokens", objective="target"
    ),
    Tuning(
        "sft",
        "MM4KE (baseline)",
        "plain fine-tuning on prompt and target, all MLPs; the paper leaves the set of weights open",
        weights="ffn",
        objective="text",
        epochs=30,
        batch=16,
        stop=0.0,
    ),
    Tuning(
        "lora",
        "Hu et al. 2022, LoRA; EasyEdit's values",
        "peft, rank 8, α 32, attention projections of all layers; EasyEdit's AdaLoRA default is not used",
        weights="attention",
        lr=5e-3,
        epochs=60,
        rank=8,
        dropout=0.1,
        stop=0.0,
    ),
    Tuning(
        "r-sft",
        "MM4KE, Algorithm 1",
        "one sample at a time, up to 6 consecutive steps, 5 epochs, FFN of one block; Adam (the paper leaves it open)",
        weights="ffn",
        epochs=5,
        repeats=6,
        stop=0.01,
    ),
    Neurons(
        "kn",
        "Dai et al. 2022, KN; EasyEdit's code",
        "activations (the key) are scaled, not pre-activations; all layers, above a share of the largest score; "
        "no refinement over prompts; facts one after another",
    ),
    Hyper(
        "mend",
        "Mitchell et al. 2022, MEND",
        "trained here for the lab model (kedit-lab train-mend): MLPs of the last three blocks; the step is a descent",
    ),
)
TABLE = {recipe.name: recipe for recipe in ROWS}


def find(recipe: str | AnyRecipe, **overrides: Any) -> AnyRecipe:
    """A recipe by name or as it is, with fields overridden; an unknown name raises a ValueError that lists them all."""
    if isinstance(recipe, str):
        if recipe not in TABLE:
            raise ValueError(f"unknown recipe {recipe!r}; the recipes are {', '.join(TABLE)}")
        recipe = TABLE[recipe]
    if not isinstance(recipe, AnyRecipe):
        raise ValueError(f"recipe is {recipe!r}; give a name or a Recipe: the names are {', '.join(TABLE)}")
    return recipe.with_(**overrides)


def located(recipe: str | AnyRecipe) -> Recipe:
    """A locate-then-edit recipe; another one raises a ValueError."""
    found = find(recipe)
    if not isinstance(found, Recipe):
        known = ", ".join(name for name, other in TABLE.items() if isinstance(other, Recipe))
        raise ValueError(f"{found.name} locates no keys; the recipes that do are {known}")
    return found


def restore(saved: dict[str, Any]) -> AnyRecipe:
    """A recipe from its saved fields and the name of its class."""
    kind = {cls.__name__: cls for cls in (Recipe, Tuning, Neurons, Hyper)}[saved["family"]]
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return kind(**{name: value for name, value in fields.items() if name != "family"})


def recipes(shape: str | None = None) -> pd.DataFrame:
    """The table of methods: pieces, paper, notes, and the values for a published model shape ("lab" unless given)."""
    named = {name: key for key, name in SHAPES.items()}
    if (shape or "lab") not in named:
        raise ValueError(f"unknown shape {shape!r}; values are known for {', '.join(named)}")
    rows = []
    for recipe in ROWS:
        values = published(recipe.name, named[shape or "lab"]) or {"values": "none published for this shape"}
        rows.append({"family": type(recipe).__name__} | vars(recipe.with_(**values)))
    return pd.DataFrame(rows).set_index("name")
