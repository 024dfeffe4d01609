"""Batches whose keys lie apart by more or less, and what MEMIT keeps of them (MEMIT-Merge, Fig. 4 and Table 2)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.extract.betas import betas
from kedit_lab.extract.keys import keys
from kedit_lab.extract.moments import second_moment
from kedit_lab.facts.sets import lab_world
from kedit_lab.measure.geometry import akd
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.collision import draw
from kedit_lab.types import Fact

RELATION_FIRST = "The name of the {} of {{}} is"
KINDS = ("one subject", "relation first", "most share", "half share", "pairs", "one last name", "distinct")


def relation_first(facts: Sequence[Fact]) -> list[Fact]:
    """The same facts asked with the relation in front, MEMIT-Merge's second template: the key may see the relation."""
    return [replace(fact, prompt=RELATION_FIRST.format(fact.relation)) for fact in facts]


def of_subjects(facts: Sequence[Fact], subjects: Sequence[str]) -> list[Fact]:
    """The same questions and targets asked of other subjects; what belonged to the old ones is dropped."""
    gone: dict[str, Any] = {"target_true": None, "paraphrases": (), "neighborhood": (), "portability": ()}
    return [replace(fact, subject=subject, **gone) for fact, subject in zip(facts, subjects, strict=True)]


def batch(kind: str, size: int, seed: int = 0) -> list[Fact]:
    """``size`` facts with the same relations and targets in every ``kind``; only subjects and templates differ.

    "one subject" and "distinct" are MEMIT-Merge's sets, "relation first" is one subject with its relation in front. In
    "most share" four facts in five are about one subject, in "half share" every second one, in "pairs" each subject has
    two; in "one last name" the subjects differ, their last names do not. Raises ValueError for an unknown kind, or
    where too few people share a name.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    same, distinct = draw("same", size, seed), draw("distinct", size, seed)
    if kind in ("one subject", "relation first"):
        return same if kind == "one subject" else relation_first(same)
    shared = {"most share": -(-4 * size // 5), "half share": -(-size // 2)}.get(kind, 0)
    if kind == "pairs":
        return of_subjects(distinct, [distinct[i // 2 * 2].subject for i in range(size)])
    if kind == "one last name":
        return of_subjects(distinct, namesakes(size, seed))
    return same[:shared] + distinct[shared:]


def namesakes(count: int, seed: int = 0) -> list[str]:
    """``count`` persons of one last name. Raises ValueError where no name is shared by so many."""
    families: dict[str, list[str]] = {}
    for person in lab_world().of_class("Person"):
        families.setdefault(person.split()[-1], []).append(person)
    able = sorted(name for name, members in families.items() if len(members) >= count)
    if not able:
        raise ValueError(f"{count} persons of one last name asked for; {max(map(len, families.values()))} is the most")
    return families[able[seed % len(able)]][:count]


def apart(
    lab: Lab, kind: str, size: int = 10, seed: int = 0, method: str = "memit", **overrides: Any
) -> dict[str, float]:
    """AKD of a batch's keys, the mean β_ii that the recipe's own C and λ leave a fact, and efficacy after the edit.

    Keys, C and λ are those of the recipe's last layer. ``overrides`` (``lam=``) change the recipe.
    """
    facts = batch(kind, size, seed)
    recipe = find(method).on(lab.arch, **overrides)
    layer = recipe.layers[-1]
    k = keys(lab, facts, layer, lab.prefixes(recipe.prefixes, recipe.prefix_length))
    own = betas(k, second_moment(lab, layer), recipe.lam_of(layer)).diagonal()
    with edit(lab, facts, recipe).applied():
        kept = evaluate(lab, facts, kinds=["rewrite"]).summary()["efficacy"]
    return {"akd": akd(k), "beta": float(own.mean()), "efficacy": kept}
