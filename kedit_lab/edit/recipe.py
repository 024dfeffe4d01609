"""What a recipe is: a named composition of pieces with its numbers, checked when it is made.

``Recipe`` composes a locate-then-edit method (group x target x spread x solver x post), ``Tuning`` a gradient-trained
one, ``Neurons`` and ``Hyper`` are knowledge neurons and MEND. The rows of the table stand in ``recipes.py``, values
that depend on the model in ``published.py``.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from kedit_lab.edit.published import fallback, published
from kedit_lab.edit.solvers import SOLVERS, SPREADS
from kedit_lab.model.arch import Arch
from kedit_lab.model.tokens import RULES

CHOICES: dict[str, tuple[str, ...]] = {
    "group": ("each", "subject", "key"),
    "target": ("block", "mlp", "attention+mlp"),
    "align": ("none", "keys"),
    "sees": ("earlier", "all"),
    "start": ("zero", "hidden"),
    "bound": ("hidden", "key"),
    "spread": tuple(SPREADS),
    "solver": tuple(SOLVERS),
    "average": ("grouped", "uniform"),
    "met": ("bare", "mean"),
    "statistics": ("moment", "identity"),
    "post": ("none", "rect", "prune"),
    "token": RULES,
    "lr_unit": ("absolute", "hidden"),
    "weights": ("mlp", "ffn", "attention"),
    "objective": ("target", "prompt_last", "text"),
    "optimizer": ("adam", "sgd"),
}
LEAST = {
    **dict.fromkeys(("lr", "clamp", "decay", "kl", "stop", "prefixes", "mu", "gamma", "threshold", "align_kl"), 0),
    **dict.fromkeys(("align_mse", "block", "keep", "epsilon", "rank", "alpha", "dropout", "settled", "span"), 0),
    **{"similarity": 0, "temperature": 1e-6, "log_base": 1},
    **dict.fromkeys(("steps", "reuse", "prefix_length", "top", "epochs", "repeats", "batch"), 1),
}
MOST = {"similarity": 1, "keep": 1}
LARGEST = 10**18  # of the others: torch takes it, as a whole number and in float32
R = TypeVar("R", bound="Base")
WHOLE = ("steps", "reuse", "prefixes", "prefix_length", "top", "block", "epochs", "repeats", "batch", "rank", "span",
         "seed")  # fmt: skip


@dataclass(frozen=True)
class Base:
    """What every recipe has: a name, its paper, what was chosen, its layers; and how it is checked and changed."""

    name: str
    paper: str = ""
    notes: str = ""
    layers: tuple[int, ...] = ()
    values: str = ""

    def __post_init__(self) -> None:
        for name, seen in vars(self).items():
            if name in CHOICES and seen not in CHOICES[name]:
                raise ValueError(f"{name} is {seen!r}; choose one of {', '.join(CHOICES[name])}")
            if name in LEAST:
                check_number(name, seen, LEAST[name])
            if name in ("memory", "alone") and seen not in (True, False):
                raise ValueError(f"{name} is {seen!r}; it is True or False")
            if name in WHOLE and not isinstance(seen, int):
                raise ValueError(f"{name} is {seen!r}; it must be a whole number")
        if not isinstance(self.layers, tuple | list) or not all(isinstance(layer, int) for layer in self.layers):
            raise ValueError(f"layers is {self.layers!r}; give a tuple of layers, such as (2,)")
        object.__setattr__(self, "layers", tuple(self.layers))
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers is {self.layers}; give each layer once, in ascending order")

    def with_(self: R, **overrides: Any) -> R:
        """This recipe with some fields changed; an unknown field raises a ValueError that lists them all."""
        known = [f.name for f in fields(self)]
        for name in overrides:
            if name not in known:
                raise ValueError(f"recipe {self.name!r} has no field {name!r}; its fields are {', '.join(known)}")
        return replace(self, **overrides)

    def on(self: R, arch: Arch, **overrides: Any) -> R:
        """This recipe for a model, with some fields changed; layers checked.

        A recipe that names no layers takes the values published for a model of this shape, or a labelled fallback.
        """
        shape = (arch.layers, arch.d_model, arch.d_k)
        known = {} if self.layers else published(self.name, shape) or fallback(self.name, arch.layers)
        changed = [key for key, value in overrides.items() if value != known.get(key, getattr(self, key, None))]
        if known and changed:
            known = known | {"values": f"{known['values']}; changed: {', '.join(changed)}"}
        recipe = self.with_(**known | overrides)
        if not recipe.layers:
            raise ValueError("layers is (); name at least one layer, or leave the field out")
        return recipe.with_(layers=tuple(arch.layer(layer) for layer in recipe.layers))


def check_number(name: str, seen: Any, least: float | int) -> None:
    """Raise a ValueError unless a field holds a finite number of at least ``least`` and at most what ``MOST`` says."""
    most = MOST.get(name, LARGEST)
    if not isinstance(seen, int | float) or isinstance(seen, bool) or not least <= seen <= most:
        raise ValueError(f"{name} is {seen!r}; it must be a finite number of at least {least} and at most {most:g}")


@dataclass(frozen=True)
class Recipe(Base):
    """A locate-then-edit method: group x target x spread x solver x post, with its numbers.

    ``target`` says where δ is added (the block's, the MLP's, or the attention's and the MLP's output) and ``align``
    whether residuals are aligned with keys; where ``sees`` is "all" a fact is aligned with later ones of its block
    too. ``start`` and ``bound`` say whether δ begins at zero or along h, and whether ``clamp`` bounds it in units of
    ‖h‖ or of the key's norm. ``lr`` is Adam's step size, in units of the residual stream ("absolute") or of
    ‖h‖/√d_model ("hidden"); ``stop`` ends a group's optimisation. ``steps`` counts passes of the model at most; the
    gradient of NLL and drift that a pass gives serves ``reuse`` steps of Adam, at each of which decay and alignment,
    which need no pass, are taken anew (above 1, ``stop`` looks at what passes are for: NLL and drift alone). With a
    ``span``, δ stays in a random subspace of so many dimensions, as in a narrower model (0: all). ``lam`` weighs the
    preserved keys C (one number, or one per layer); ``mu`` relaxes EMMET's equality; ``threshold`` and ``gamma`` are
    AlphaEdit's. ``average`` is the mean of keys over contexts, ``met`` the key at which ROME's equality holds.
    ``memory`` says whether earlier batches' keys count, ``alone`` whether facts are written one after another.
    ``block`` is the number of facts whose values are found at once where their order matters (``align``, ``alone``);
    0: as many as fit. Keys whose cosine exceeds ``similarity`` are close: one group where ``group`` is "key". Where
    residuals are aligned and no ``block`` is given, facts with close keys are found one after another (all of them, in
    a layer whose keys are all close), or, where all are seen, wait for each other.
    """

    group: str = "each"
    target: str = "block"
    align: str = "none"
    sees: str = "earlier"
    spread: str = "1/m"
    solver: str = "ridge"
    post: str = "none"
    token: str = "subject_last"
    start: str = "zero"
    bound: str = "hidden"
    average: str = "grouped"
    met: str = "mean"
    statistics: str = "moment"
    memory: bool = False
    alone: bool = False
    lam: float | tuple[float, ...] = 15000.0
    mu: float = 0.1
    gamma: float = 10.0
    threshold: float = 0.02
    steps: int = 25
    reuse: int = 1
    lr: float = 0.5
    lr_unit: str = "absolute"
    clamp: float = 0.75
    decay: float = 0.5
    kl: float = 0.0625
    stop: float = 0.05
    settled: float = 0.0
    span: int = 0
    prefixes: int = 5
    prefix_length: int = 10
    align_kl: float = 2.0
    align_mse: float = 8.0
    temperature: float = 0.07
    top: int = 50
    block: int = 0
    similarity: float = 0.9
    keep: float = 0.4
    log_base: float = 2.718281828459045

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lam, list):
            object.__setattr__(self, "lam", tuple(self.lam))
        for lam in self.lam if isinstance(self.lam, tuple) else (self.lam,):
            check_number("lam", lam, 0)
            if lam == 0:
                raise ValueError("lam is 0; the weight λ of the preserved keys must be positive")
        if isinstance(self.lam, tuple) and self.layers and len(self.lam) != len(self.layers):
            raise ValueError(
                f"lam has {len(self.lam)} values for {len(self.layers)} layers; give one, or one per layer"
            )
        if self.log_base == 1:
            raise ValueError(f"log_base is {self.log_base!r}; the base of PRUNE's logarithm must exceed 1")

    @property
    def written(self) -> str:
        """The part whose value the target is stated for, and at which the missing residual is measured."""
        return "block" if self.target == "block" else "mlp"

    def lam_of(self, layer: int) -> float:
        """λ of one of the recipe's layers."""
        return self.lam[self.layers.index(layer)] if isinstance(self.lam, tuple) else self.lam


@dataclass(frozen=True)
class Tuning(Base):
    """A method that trains named weights by gradient descent.

    ``weights`` are the MLPs' output projections ("mlp"), all of the MLP ("ffn") or the attention projections of
    ``layers``. ``objective`` is the teacher-forced loss of the target tokens ("target", FT-M), every target token
    scored at the last prompt token ("prompt_last", FT as published) or the loss of all tokens ("text", SFT).
    ``epochs`` passes over the facts in batches of ``batch``, each with up to ``repeats`` consecutive steps (R-SFT's
    K); a batch whose loss is under ``stop`` gets no step. ``epsilon`` bounds every entry of ΔW (FT-L; 0: no bound).
    ``rank`` above zero trains LoRA factors with scale ``alpha`` instead of the weights.
    """

    weights: str = "mlp"
    objective: str = "target"
    optimizer: str = "adam"
    lr: float = 5e-4
    epochs: int = 25
    repeats: int = 1
    batch: int = 1
    stop: float = 0.01
    epsilon: float = 0.0
    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Neurons(Base):
    """Knowledge neurons: ``steps`` points of the integral; scores above ``threshold`` x the largest are edited."""

    steps: int = 20
    threshold: float = 0.2


@dataclass(frozen=True)
class Hyper(Base):
    """A trained hypernetwork (MEND) that turns gradients into edits of the MLPs of ``layers``.

    ``path`` is its file; empty means the one shipped for the lab model.
    """

    path: str = ""

    def on(self, arch: Arch, **overrides: Any) -> "Hyper":
        """This recipe for a model; other layers than those that its editor is trained for raise a ValueError."""
        recipe, trained = super().on(arch, **overrides), fallback("mend", arch.layers)["layers"]
        if recipe.layers != trained:
            raise ValueError(f"layers is {recipe.layers}, but MEND's editor is trained for {trained}; leave layers out")
        return recipe


AnyRecipe = Recipe | Tuning | Neurons | Hyper
