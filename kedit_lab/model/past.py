"""The past of token rows: attention keys and values of positions that are run once and only read afterwards."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kedit_lab.model.hooks import Stop, on
from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import pad

LEAST = 8  # leading ids that rows must have in common before what they share is run once for all
Past = tuple[tuple[Tensor, Tensor], ...]  # (keys, values) per layer, each rows x heads x tokens x width


class FrozenLayer(DynamicLayer):
    """Attention keys and values of one layer that a forward pass reads but never extends."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class GrowingLayer(FrozenLayer):
    """The same, and what a pass adds stays."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = super().update(key_states, value_states)
        return self.keys, self.values


def halt(_hidden: Tensor) -> None:
    """What is called where nothing further is needed: ends the pass."""
    raise Stop


def leads(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Per row, the leading ids that it has in common with all rows of the same LEAST first ids; empty alone."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(row[:LEAST], []).append(i)
    found: list[tuple[int, ...]] = [()] * len(rows)
    for members in alike.values():
        columns = takewhile(lambda ids: len(set(ids)) == 1, zip(*(rows[i] for i in members), strict=False))
        shared = tuple(ids[0] for ids in columns) if len(members) > 1 else ()
        for i in members:
            found[i] = shared
    return found


def extended(lab: Lab, past: Past, seen: Tensor, rows: Sequence[tuple[int, ...]], left: bool) -> tuple[Past, Tensor]:
    """(past, mask) behind more ids of every row. The pass ends at the last block's attention: no more is kept."""
    batch = pad(rows, lab.anchor, left)
    if not batch["input_ids"].shape[1]:
        return past, seen
    mask = torch.cat([seen, batch["attention_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, seen.shape[1] :]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}
    cache = Cache(layers=[GrowingLayer(*pair) for pair in past]) if past else DynamicCache()
    with suppress(Stop), on(lab.arch.attention[-1].module, True, halt):
        lab.model.base_model(**lab.inputs(inputs), past_key_values=cache, use_cache=True)
    return tuple((layer.keys, layer.values) for layer in cache.layers), mask


@torch.no_grad()
def remembered(lab: Lab, rows: Sequence[tuple[int, ...]]) -> tuple[Past, Int[Tensor, "rows width"]]:
    """(past, mask) of rows of ids, padded on the left: what rows have in common in front is run once for all of them.

    Nothing is kept where all rows are empty. Rows stay without gaps between their tokens, as sliding windows count.
    """
    shared = leads(rows)
    unique = list(dict.fromkeys(shared))
    owner = torch.tensor([unique.index(lead) for lead in shared], device=lab.anchor.device)
    past, mask = extended(lab, (), torch.zeros(len(unique), 0, dtype=torch.long, device=owner.device), unique, True)
    past, mask = tuple((keys[owner], values[owner]) for keys, values in past), mask[owner]
    past, mask = extended(lab, past, mask, [row[len(a) :] for row, a in zip(rows, shared, strict=True)], False)
    order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - max(map(len, rows)) :]  # padding goes to the left
    place = order[:, None, :, None]
    moved = tuple(tuple(t.take_along_dim(place.to(t.device), 2) for t in pair) for pair in past)
    return moved, mask.gather(1, order)
