"""Which facts share one value: those of one subject, or those whose keys (nearly) coincide."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from kedit_lab.edit.recipes import find
from kedit_lab.extract.keys import keys
from kedit_lab.model.lab import Lab
from kedit_lab.types import Fact

SHARED = 0.99  # cosine above which two keys count as one
BLOCK = 512  # rows of the similarity matrix that are looked at together


def group(lab: Lab, facts: Sequence[Fact], rule: str, layer: int, similarity: float = 0.9,
          token: str = "subject_last") -> list[list[int]]:  # fmt: skip
    """Which facts share one target value, in order of first appearance.

    None ("each"), those of one subject ("subject", MEMIT-Merge's rule), or those whose keys at ``layer`` are close
    ("key"): agglomerative clustering with average linkage, joined while the mean cosine exceeds ``similarity``.
    """
    names: Sequence[object] = range(len(facts))
    if rule == "subject":
        names = [fact.subject for fact in facts]
    elif rule == "key" and len(facts) > 1:
        distance = (1 - cosines(keys(lab, facts, layer, None, token))).clamp_min(0).cpu().numpy()
        tree = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=1 - similarity)
        names = tree.fit_predict(distance).tolist()
    table: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        table.setdefault(name, []).append(i)
    return list(table.values())


def groups(lab: Lab, facts: Sequence[Fact], rule: str = "key", similarity: float = 0.9,
           layer: int | None = None, token: str = "subject_last") -> pd.DataFrame:  # fmt: skip
    """Which facts fall together: one row per fact with its ``group``, the group's ``size`` and ``closest``, the cosine
    of its key with the nearest other member's (NaN alone). ``layer`` is memit's last one unless given.
    """
    if rule not in ("each", "subject", "key"):
        raise ValueError(f"rule is {rule!r}; choose one of each, subject, key")
    layer = find("memit").on(lab.arch).layers[-1] if layer is None else lab.arch.layer(layer)
    found = group(lab, facts, rule, layer, similarity, token)
    near = cosines(keys(lab, facts, layer, None, token)).fill_diagonal_(-2.0)
    rows = []
    for number, members in enumerate(found):
        for i in members:
            others = [j for j in members if j != i]
            closest = float(near[i, others].max()) if others else float("nan")
            rows.append((i, number, len(members), facts[i].subject, facts[i].text, facts[i].target_new, closest))
    columns = ["fact", "group", "size", "subject", "prompt", "target_new", "closest"]
    return pd.DataFrame(rows, columns=columns).set_index("fact").sort_index()


def cosines(rows: Float[Tensor, "facts d_k"]) -> Float[Tensor, "facts facts"]:
    """Cosine of every key with every key."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def clusters(keys: Float[Tensor, "facts d_k"]) -> list[int]:
    """Sizes of the sets of facts whose keys coincide (cosine above SHARED with the set's first fact), largest first."""
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    owner = torch.full((len(unit),), -1)
    for start in range(0, len(unit), BLOCK):  # some rows at a time: nothing quadratic is kept
        near = (unit[start : start + BLOCK] @ unit.T > SHARED).cpu()
        for i, row in enumerate(near, start):
            if owner[i] < 0:
                owner[row & (owner < 0)] = i
    return sorted(Counter(owner.tolist()).values(), reverse=True)
