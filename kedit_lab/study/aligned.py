"""EAMET's misalignment A(i) as a study: against the batch's size, behind prefixes, and what keys cost to prepare."""

import random
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.run import edit
from kedit_lab.extract.betas import betas
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density, known_facts, lab_world
from kedit_lab.measure.geometry import cosine, misalignment
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.study.papers import paper
from kedit_lab.types import Fact

BATCHES = ("once", "drawn")
LENGTHS = (0, 5, 10, 50)  # tokens of the texts in front, as in EAMET's Table 2
EXTREME = 10  # facts of the lowest and of the highest A(i), as there


def facts_of(batch: str, size: int, seed: int = 0) -> list[Fact]:
    """``size`` known facts of persons: every subject "once", or "drawn" at random, so that some subjects come up again.

    The more is drawn, the more often a subject is met twice, as in a data set. Raises ValueError for another batch.
    """
    if batch not in BATCHES:
        raise ValueError(f"batch is {batch!r}; choose one of {', '.join(BATCHES)}")
    if batch == "once":
        return by_density(size, 1, seed)
    rng, world = random.Random(f"drawn {seed}"), lab_world()
    people = world.of_class("Person")
    counts = Counter(rng.choice(people) for _ in range(size))
    return [fact for subject, count in counts.items() for fact in known_facts(world, subject, count, rng)]


def geometry(lab: Lab, facts: list[Fact], made: Edit) -> tuple[Float[Tensor, "facts d_k"], Float[Tensor, "facts d"]]:
    """(keys, residuals) of an edit at its last layer, as its solver saw them."""
    recipe = made.recipe
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{recipe.name} is not a locate-then-edit recipe and has no residuals to align")
    layer = recipe.layers[-1]
    k = keys(lab, facts, layer, lab.prefixes(recipe.prefixes, recipe.prefix_length), recipe.token)
    return k, made.at(layer).left.T.to(k)


def behind(lab: Lab, facts: list[Fact], length: int, texts: int = 2) -> Float[np.ndarray, " facts"]:
    """How often each fact's object is said behind ``texts`` sampled prefixes of ``length`` tokens (0: none)."""
    prefixes = lab.prefixes(texts, length, seed=1) if length else ("",)
    found = [evaluate(lab, facts, kinds=["rewrite"], prefix=prefix)["exact"].to_numpy(float) for prefix in prefixes]
    return np.mean(found, axis=0)


def aligned(lab: Lab, batch: str = "once", size: int = 200, seed: int = 0, texts: int = 2) -> dict[str, float]:
    """MEMIT's misalignment and accuracy (EAMET, Tables 1 and 2): ``misalignment`` is ΣA(i), ``shared`` the share of
    facts whose subject has another in the batch; ``all_50`` is the accuracy behind 50 tokens, ``low_50`` and
    ``high_50`` that of the ten facts with the lowest and the highest A(i).
    """
    facts = facts_of(batch, size, seed)
    made = edit(lab, facts, "memit")
    k, r = geometry(lab, facts, made)
    order = misalignment(r, k)
    ranked = order.argsort().tolist()
    count = Counter(fact.subject for fact in facts)
    told = {"misalignment": float(order.sum()), "shared": sum(count[f.subject] > 1 for f in facts) / size}
    with made.applied():
        for length in LENGTHS:
            said = behind(lab, facts, length, texts)
            parts = {"all": said, "low": said[ranked[:EXTREME]], "high": said[ranked[-EXTREME:]]}
            told |= {f"{name}_{length}": float(part.mean()) for name, part in parts.items()}
    return told


def table_1(grid: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``aligned`` and, as batches named "paper, ...", those of EAMET's Table 1: ``N``, ``batch``, ``accuracy``,
    ``A per fact``.
    """
    ours = grid.rename(columns={"size": "N", "all_0": "accuracy"}).assign(total=grid["misalignment"])
    rows = paper("eamet", table=1)
    rows = rows.assign(
        N=rows["setting"].str.extract(r"(\d+)", expand=False).astype(int), batch="paper, " + rows["model"]
    )
    theirs = rows.pivot(index=["batch", "N"], columns="metric", values="value").reset_index()
    theirs = theirs.assign(accuracy=theirs["efficacy"] / 100, total=theirs["misalignment sum"])
    both = pd.concat([ours, theirs])
    return both.assign(**{"A per fact": both["total"] / both["N"]})


def table_2(row: pd.Series, model: str = "Llama-2-7B") -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row of ``aligned`` and EAMET's Table 2, by ``tokens in front`` and ``facts`` (all, or the ten of an end)."""
    names = {"all": "all facts", "low": "ten lowest A", "high": "ten highest A"}
    cells = [(length, names[part], row[f"{part}_{length}"]) for length in LENGTHS for part in names]
    rows = paper("eamet", table=2)
    rows = rows[rows["model"] == model]
    found = rows["setting"].str.extract(r"prefix (\d+)(?:, (ten) of (\w+ A))?")
    end = (found[1] + " " + found[2]).fillna("all facts")
    theirs = {"tokens in front": found[0].astype(int), "facts": end, "value": rows["value"] / 100}
    return pd.DataFrame(cells, columns=["tokens in front", "facts", "accuracy"]), pd.DataFrame(theirs)


def own_weights(
    subjects: Sequence[Float[Tensor, "facts d_k"]],
    strangers: Float[Tensor, "strangers d_k"],
    second_moment: Float[Tensor, "d_k d_k"],
    lam: float,
) -> pd.DataFrame:
    """β_ii of each subject's first fact as its 1, 2, ... facts join a crowd of strangers (EAMET, Fig. 3).

    Columns: ``facts`` about the subject, ``subject`` (its number), ``own`` (β_ii), ``next`` (the largest other |β_ij|).
    """
    rows = []
    for n in range(1, min(map(len, subjects)) + 1):
        beta = betas(torch.cat([*(k[:n] for k in subjects), strangers]), second_moment, lam)
        for subject in range(len(subjects)):
            row = beta[subject * n].abs()
            own, row[subject * n] = float(row[subject * n]), 0.0
            rows.append({"facts": n, "subject": subject + 1, "own": own, "next": float(row.max())})
    return pd.DataFrame(rows)


def prepared(lab: Lab, size: int = 100, run: int = 0, layer: int = 2) -> dict[str, float]:
    """Seconds of one processor for the keys of ``size`` facts behind MEMIT's prefixes, and for all their cosines.

    Time is the process's own (EAMET, Table 11, by the clock), so that what runs beside it does not count. ``run``
    draws other facts.
    """
    facts = by_density(size, 8, run)
    prefixes = lab.prefixes(2)
    began = time.process_time()
    k = keys(lab, facts, layer, prefixes)
    read = time.process_time()
    similar = cosine(k)
    done = time.process_time()
    return {"keys": read - began, "similarities": done - read, "mean_cosine": float(similar.mean())}
