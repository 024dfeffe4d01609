"""Which layers and which step size for a model nobody tuned: from interchanges and targets of a few facts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
import torch

from kedit_lab.edit.recipe import AnyRecipe, Recipe
from kedit_lab.edit.recipes import find
from kedit_lab.edit.targets import values
from kedit_lab.extract.trace import interchange
from kedit_lab.model.arch import Arch
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.types import Fact, ends_in

PAIRS = 60
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
SPAN = 5  # layers at most, as in the published values of deep models
NEAR = 0.05  # shares of pairs or facts that count as equal
SLOWER = 1.25  # a smaller step size may take so many times the fewest steps: short residuals disturb less


@dataclass(frozen=True)
class Suggestion:
    """Layers and step size with the tables that justify them; ``kl.show.suggestion`` draws both.

    ``layers`` has one row per layer: ``flipped`` and ``kept``, shares of pairs. ``steps`` has one row per step size:
    ``reached`` (share of facts whose loss came under the early stop), ``steps`` taken, ``length`` (mean ‖δ‖/‖h‖).
    """

    values: dict[str, Any]
    layers: pd.DataFrame = field(repr=False)
    steps: pd.DataFrame = field(repr=False)
    arch: Arch = field(repr=False)

    def recipe(self, name: str | AnyRecipe = "memit") -> AnyRecipe:
        """A recipe with the suggested values, and for the rest what is known for this model."""
        return find(name).on(self.arch, **self.values)


def suggest(lab: Lab, facts: Sequence[Fact], pairs: int = PAIRS, rates: Sequence[float] = RATES,
            seed: int = 0) -> Suggestion:  # fmt: skip
    """Layers and step size for locate-then-edit recipes, from a few facts (four subjects or more are good).

    Layers: two subjects' states at the last subject token are exchanged, layer by layer. Where that turns the answer
    into the other subject's, what the model knows of it passes; the last layer where nearly as many pairs flip as
    anywhere is the last one to edit, and before it a sixth of the depth, ``SPAN`` layers at most in all. Step size:
    targets of the facts at that layer for each of ``rates``, in units of ‖h‖/√d_model; the smallest that reaches nearly
    the most targets in nearly the fewest steps. Answers are what the model says today, right or wrong. No
    weight is changed. Raises ValueError where fewer than two subjects are given, or all of them get the same answers,
    and for a number of pairs or step sizes that cannot be tried.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; exchange at least one pair")
    rates = tuple(rates)
    if not rates or not min(rates) > 0:
        raise ValueError(f"rates is {rates}; give step sizes above zero, such as {RATES}")
    shares = where(lab, answered(lab, facts, pairs, seed))
    last = decisive(shares["flipped"])
    span = min(SPAN, max(1, round(lab.arch.layers / 6)))
    layers = tuple(range(max(0, last - span + 1), last + 1))
    tried = pd.DataFrame([reached(lab, facts, layers, rate) for rate in rates]).set_index("lr")
    return Suggestion({"layers": layers, "lr": quickest(tried), "lr_unit": "hidden"}, shares, tried, lab.arch)


def where(lab: Lab, pairs: Sequence[tuple[Fact, Fact]]) -> pd.DataFrame:
    """Per layer the shares of pairs that flip, and that keep their answer."""
    return interchange(lab, pairs).groupby("layer")[["flipped", "kept"]].mean()


def decisive(flipped: pd.Series) -> int:
    """The last layer at which nearly as many pairs flip as at the best one."""
    return int(flipped.index[flipped >= flipped.max() - NEAR][-1])


def quickest(tried: pd.DataFrame) -> float:
    """The smallest step size that reaches nearly the most targets in not many more than the fewest steps."""
    good = tried[tried["reached"] >= tried["reached"].max() - NEAR]
    return float(good.index[good["steps"] <= SLOWER * good["steps"].min()].min())


@torch.no_grad()
def said(lab: Lab, facts: Sequence[Fact]) -> list[str]:
    """The likeliest first token of each fact's answer today."""
    found: list[str] = []
    for part in chunks(facts, 64):
        rows = [lab.encode(fact.text)[0] for fact in part]
        normed = lab.hidden(**lab.batch(rows))[range(len(rows)), [len(row) - 1 for row in rows]]
        found += [lab.tokenizer.decode([token]) for token in lab.arch.logits(normed).argmax(-1).tolist()]
    return found


def answered(lab: Lab, facts: Sequence[Fact], count: int, seed: int = 0) -> list[tuple[Fact, Fact]]:
    """Pairs of questions that differ in their subject only and get different answers; answers are the model's own.

    Every prompt of the facts is asked of every subject; ``count`` pairs are drawn, the same for the same seed. An
    answer that only repeats the end of its prompt does not count.
    """
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    prompts = list(dict.fromkeys(fact.prompt for fact in facts))
    if len(subjects) < 2:
        raise ValueError(f"the facts have {len(subjects)} subject; give facts of two or more, four are good")
    both = list(combinations(subjects, 2))
    drawn = [(prompt, *pair) for prompt in prompts for pair in both]
    random.Random(seed).shuffle(drawn)
    asked = sorted({(prompt, subject) for prompt, *pair in drawn[: 4 * count] for subject in pair})
    told = dict(zip(asked, said(lab, [Fact(s, p, "?") for p, s in asked]), strict=True))
    answers = {at: text for at, text in told.items() if text.strip() and not ends_in(at[0].rstrip(), text.strip())}
    different = [
        tuple(Fact(subject, prompt, answers[prompt, subject]) for subject in pair)
        for prompt, *pair in drawn[: 4 * count]
        if len({answers[prompt, subject].strip() for subject in pair if (prompt, subject) in answers}) == 2
    ]
    if not different:
        raise ValueError("the model answers the same for all subjects; give facts that it knows something about")
    return different[:count]


def reached(lab: Lab, facts: Sequence[Fact], layers: tuple[int, ...], rate: float) -> dict[str, float]:
    """What targets with one step size come to: the row of ``Suggestion.steps``."""
    recipe = find("memit").on(lab.arch).with_(lam=1.0, layers=layers, lr=rate, lr_unit="hidden", decay=0.0)
    assert isinstance(recipe, Recipe)
    found = values(lab, list(facts), [[i] for i in range(len(facts))], recipe, lab.prefixes(recipe.prefixes))
    ended = sum(curve[-1] < recipe.stop for curve in found.curves) / len(facts)
    taken = sum(map(len, found.curves)) / len(facts)
    length = ((found.z - found.h).norm(dim=1) / found.h.norm(dim=1)).mean()
    return {"lr": rate, "reached": ended, "steps": taken, "length": float(length)}
