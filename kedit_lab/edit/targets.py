"""What an edit wants the model to hold at the lookup token: target values z = h + δ of all facts, batch by batch.

A group of facts that shares one value has one δ (MEMIT-Merge, Eq. 3), a fact alone is a group of one (MEMIT). How δ is
found is in ``descent``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit.align import Alignment
from kedit_lab.edit.bundles import Asked
from kedit_lab.edit.descent import Watch, descend
from kedit_lab.edit.journal import Journal
from kedit_lab.edit.recipe import Recipe
from kedit_lab.extract.keys import keys, read
from kedit_lab.model.lab import Lab
from kedit_lab.model.past import Known
from kedit_lab.model.process import release, spare
from kedit_lab.model.tokens import Row
from kedit_lab.types import Fact

ROOM = 2**26  # bytes that a batched pass may hold for its way back, however small the model
PAST = 0.1  # of what a token behind the lookup token holds, a token before it does: attention keys and values alone


@dataclass(frozen=True)
class Targets:
    """Target values z (facts x d_model), the hidden states they started from, the loss curve of every group, and the
    averaged keys of the last layer where they had to be read for the values (None where a pass is bounded)."""

    z: Float[Tensor, "facts d_model"]
    h: Float[Tensor, "facts d_model"]
    curves: list[list[float]]
    keys: Float[Tensor, "facts d_k"] | None = None


def questions(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
              prefixes: Sequence[str]) -> list[list[Asked]]:  # fmt: skip
    """Per group: every member behind every prefix (the bare first), weighted equally, and the row "{subject} is a"."""
    rows = lab.rows(facts, ("", *prefixes), recipe.token)
    essences = lab.essences([facts[members[0]].subject for members in groups])
    asked = []
    for g, (members, essence) in enumerate(zip(groups, essences, strict=True)):
        share = 1 / (len(members) * (1 + len(prefixes)))
        drift = Row(essence.prompt[: essence.lookup + 1], (), essence.lookup)
        asked.append([*(Asked(row, g, share) for i in members for row in rows[i]), Asked(drift, g, 0.0, drift=True)])
    return asked


def budget(lab: Lab, start: int = 0, room: int | None = None) -> int:
    """Tokens of one batched pass of the tail, so that what it holds is about ``lab.work`` bytes; where that is None, a
    sixth of the model, or half of what the model leaves of a GPU's own memory (of the fullest), where few tokens leave
    most of it idle; or ``room``, if that is more.

    Counted per token: some ten vectors of the residual stream and eight keys a block from ``start`` on, logits twice.
    """
    logits = 2 * len(lab.model.get_input_embeddings().weight)
    held = (lab.arch.layers - start) * (10 * lab.arch.d_model + 8 * lab.arch.d_k) + logits
    sizes: Counter[torch.device] = Counter()
    for p in lab.model.parameters():
        sizes[p.device] += p.nbytes
    cards = {tensor.device for tensor in (lab.anchor, *lab.model.parameters()) if tensor.is_cuda}
    left = [torch.cuda.mem_get_info(card)[1] - sizes[card] for card in cards]  # the same at every run
    free = max(ROOM if room is None else room, min(left) / 2 if left else sizes.total() / 6)
    return max(1, int((free if lab.work is None else lab.work) / (held * lab.anchor.element_size())))


def batches(asked: list[list[Asked]], tokens: int, turns: Sequence[int] | None = None,
            most: int = 0) -> Iterator[list[int]]:  # fmt: skip
    """Groups of similar size, together at most ``tokens`` behind their lookup tokens, those before counted as PAST (or
    one group alone, however large).

    Aligned targets depend on earlier ones: with ``turns`` groups stay in order within a turn, which ends before the
    next begins, at most ``most`` at once (0: no bound), and only tokens behind the lookup token count.
    """
    past = 0.0 if turns else PAST
    size = [sum(a.length + past * a.row.lookup for a in rows) for rows in asked]
    batch: list[int] = []
    for g in sorted(range(len(asked)), key=(turns or size).__getitem__):
        full = sum(size[b] for b in [*batch, g]) > tokens
        if batch and (full or (turns and turns[g] != turns[batch[0]]) or 0 < most <= len(batch)):
            yield batch
            batch = []
        batch.append(g)
    yield batch


def values(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe,
           prefixes: Sequence[str], watch: Watch | None = None,
           journal: Journal | None = None) -> Targets:  # fmt: skip
    """Target values of all facts: δ per group minimises NLL + kl·KL + decay·‖δ‖/‖h‖² (MEMIT, Eq. 4, and its code).

    δ is added at the lookup token of the recipe's last layer. Adam, at most ``steps`` passes (the last one updates
    nothing); a group whose loss is under ``stop`` leaves the batch; ‖δ‖ stays within ``clamp`` times its bound.
    EAMET adds its alignment with the keys of all other groups so far: those with close keys as they ended, the rest of
    its batch as they stand. A pass's gradient serves ``reuse`` steps of Adam, at each of which decay and alignment are
    taken anew. ``watch`` is called before every step and at the last pass. A ``journal`` is told every batch once it is
    found, and those that it holds already are not found again.
    """
    layer = lab.arch.layer(recipe.layers[-1])
    asked = questions(lab, facts, groups, recipe, prefixes)
    begun = None if recipe.target == "block" else starts(lab, [facts[members[0]] for members in groups], layer, recipe)
    each = norms = alignment = None
    if recipe.align == "keys" or "key" in (recipe.bound, recipe.start):
        each = keys(lab, facts, layer, prefixes or None, recipe.token)
        means = averaged(each, groups).to(lab.anchor.device)
        norms = means.norm(dim=1)
        alignment = Alignment.of(means, recipe) if recipe.align == "keys" else None
        del means
        each = each if lab.work is None else None  # read again later, where little may be held
    spare(lab)  # what reading keys and tokens held
    h = torch.empty(len(facts), lab.arch.d_model, device=lab.anchor.device)
    owner = torch.empty(len(facts), dtype=torch.long, device=lab.anchor.device)
    curves: list[list[float]] = [[] for _ in groups]
    known = torch.zeros(len(groups), lab.arch.d_model, device=lab.anchor.device)  # δ of every group so far
    # an aligned value depends on the size of its block, which must not depend on the layer unless memory is bounded
    everywhere = alignment is not None and lab.work is None
    tokens = budget(lab, 0, 3 * ROOM) if everywhere else budget(lab, layer + 1, 2 * ROOM)
    leads: Known = {}
    turns, most = (None, 0) if alignment is None else (alignment.turns(), recipe.block)
    for batch in batches(asked, tokens, turns, most):
        if lab.work is not None:
            release()
        kept = None if journal is None else journal.take(batch, known)
        if kept is None:
            rows = [replace(a, group=i) for i, g in enumerate(batch) for a in asked[g]]
            ahead = None if alignment is None else alignment.ahead(batch)
            seen = None if watch is None else partial(tell, watch, known, batch)
            own = None if begun is None else begun[:, batch]
            along = norms if norms is None else norms[batch]
            kept = descend(lab, rows, own, along, layer, recipe, ahead, tokens, seen, leads)
            if journal is not None:
                journal.keep(batch, *kept)
        start, delta, losses = kept
        known[batch] = delta
        if alignment is not None:
            alignment.keep(batch, delta)
        for i, g in enumerate(batch):
            members = list(groups[g])
            h[members], owner[members] = start[i], g
            curves[g] = losses[i]
    return Targets(h + known[owner], h, curves, each)


def averaged(each: Float[Tensor, "facts d_k"], groups: Sequence[Sequence[int]]) -> Float[Tensor, "groups d_k"]:
    """The mean key of every group; the keys themselves, not a copy, where each fact is one, in their order."""
    if all(list(members) == [i] for i, members in enumerate(groups)):
        return each.float()
    return torch.stack([each[list(members)].float().mean(0) for members in groups])


def starts(lab: Lab, heads: Sequence[Fact], layer: int, recipe: Recipe) -> Float[Tensor, "parts groups d_model"]:
    """What the parts that the recipe names hold at the lookup token of bare prompts."""
    parts = recipe.target.split("+")
    held = [read(lab, heads, part, [layer], None, recipe.token)[layer][:, 0].float() for part in parts]
    return torch.stack(held).to(lab.anchor.device)


def tell(watch: Watch, known: Tensor, batch: list[int], step: int, delta: Float[Tensor, "batch d_model"]) -> None:
    """Tell who watches how a batch of groups stands, beside those before it."""
    known[batch] = delta
    watch(step, known.clone())
