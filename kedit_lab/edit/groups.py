"""Which facts share one value: those of one subject, or those whose keys (nearly) coincide."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from kedit_lab.edit.recipes import find
from kedit_lab.extract.keys import keys
from kedit_lab.model.lab import Lab
from kedit_lab.types import Fact, several, within

SHARED = 0.99  # cosine above which two keys count as one
BLOCK = 128  # keys, or rows of their similarity matrix, that are looked at together


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
        names = joined(keys(lab, facts, layer, None, token), similarity)
    return alike(names)


def alike(names: Sequence[object]) -> list[list[int]]:
    """The positions of equal names, in order of first appearance."""
    table: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        table.setdefault(name, []).append(i)
    return list(table.values())


def joined(rows: Float[Tensor, "facts d_k"], similarity: float) -> list[tuple[int, int]]:
    """A name per key, equal where clustering joins them: agglomerative, while the mean cosine exceeds ``similarity``.

    Two clusters with such a mean have a pair above it, so the tree is grown within what pairs connect, and no matrix of
    all keys is built.
    """
    parts = connected(rows, similarity)
    tree = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=1 - similarity)
    names = [(part, 0) for part in parts]
    for members in alike(parts):
        if len(members) > 1:
            distance = (1 - cosines(rows[members])).clamp_min(0).cpu().numpy()
            for i, label in zip(members, tree.fit_predict(distance).tolist(), strict=True):
                names[i] = (parts[i], label)
    return names


def connected(rows: Float[Tensor, "facts d_k"], similarity: float) -> list[int]:
    """A number per key, equal where a chain of pairs with a cosine above ``similarity`` leads from one to the other."""
    a, b, _ = near(rows, similarity)
    links = coo_array((torch.ones(len(a)).numpy(), (a.numpy(), b.numpy())), shape=(len(rows), len(rows)))
    return connected_components(links, directed=False)[1].tolist()


def near(rows: Float[Tensor, "facts d_k"], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, cosine) of the pairs a < b of keys whose cosine exceeds ``threshold``, a block of keys at a time.

    Raises ValueError for keys that hold NaN or infinite values, and for a threshold that is no cosine.
    """
    if not within(threshold, -1, 1):
        raise ValueError(f"threshold is {threshold!r}; it is a cosine from -1 to 1")
    if not rows.isfinite().all():
        raise ValueError("keys hold NaN or infinite values; load an undamaged checkpoint")
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    found = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit[start:].T
        a, b = (cosine > threshold).triu(1).nonzero(as_tuple=True)
        found.append(((a + start).cpu(), (b + start).cpu(), cosine[a, b].cpu()))
    a, b, cosine = (torch.cat(part) for part in zip(*found, strict=True))
    return a, b, cosine


def groups(lab: Lab, facts: Sequence[Fact], rule: str = "key", similarity: float = 0.9,
           layer: int | None = None, token: str = "subject_last") -> pd.DataFrame:  # fmt: skip
    """Which facts fall together: one row per fact with its ``group``, the group's ``size`` and ``closest``, the cosine
    of its key with the nearest other member's (NaN alone). ``layer`` is memit's last one unless given. Raises
    ValueError for an unknown rule, layer or token rule, a similarity outside 0 to 1, and where there are no facts.
    """
    if rule not in ("each", "subject", "key"):
        raise ValueError(f"rule is {rule!r}; choose one of each, subject, key")
    if not within(similarity, 0, 1):
        raise ValueError(f"similarity is {similarity!r}; it is a cosine from 0 to 1")
    facts = several("facts", facts, Fact)
    layer = find("memit").on(lab.arch).layers[-1] if layer is None else lab.arch.layer(layer)
    found = group(lab, facts, rule, layer, similarity, token)
    k, rows = keys(lab, facts, layer, None, token), []
    for number, members in enumerate(found):
        closest = cosines(k[members]).fill_diagonal_(-2.0).amax(1).tolist() if len(members) > 1 else [float("nan")]
        for i, nearest in zip(members, closest, strict=True):
            rows.append((i, number, len(members), facts[i].subject, facts[i].text, facts[i].target_new, nearest))
    columns = ["fact", "group", "size", "subject", "prompt", "target_new", "closest"]
    return pd.DataFrame(rows, columns=columns).set_index("fact").sort_index()


def collisions(lab: Lab, facts: Sequence[Fact], layer: int | None = None, threshold: float = SHARED) -> pd.DataFrame:
    """Pairs of facts whose keys' cosine exceeds ``threshold``, before anything is solved: ``a``, ``b``, ``cosine``.

    ``layer`` is memit's last one unless given. Raises ValueError for an unknown layer, a threshold that is no cosine,
    and where there are no facts.
    """
    layer = find("memit").on(lab.arch).layers[-1] if layer is None else lab.arch.layer(layer)
    a, b, cosine = near(keys(lab, facts, layer), threshold)
    texts = [fact.text for fact in facts]
    return pd.DataFrame({"a": [texts[i] for i in a], "b": [texts[i] for i in b], "cosine": cosine.tolist()})


def cosines(rows: Float[Tensor, "facts d_k"]) -> Float[Tensor, "facts facts"]:
    """Cosine of every key with every key."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def clusters(keys: Float[Tensor, "facts d_k"]) -> list[int]:
    """Sizes of the sets of facts whose keys coincide (cosine above SHARED with the set's first fact), largest first."""
    rows = keys.float()
    norms, owner = rows.norm(dim=1).clamp_min(1e-12), torch.full((len(rows),), -1)
    for start in range(0, len(rows), BLOCK):  # nothing as large as all keys is made (of float32)
        some = slice(start, start + BLOCK)
        cosine = (rows[some] / norms[some, None]) @ rows.T
        near = (cosine.div_(norms) > SHARED).cpu()
        for i, row in enumerate(near, start):
            if owner[i] < 0:
                owner[row & (owner < 0)] = i
    return sorted(Counter(owner.tolist()).values(), reverse=True)
