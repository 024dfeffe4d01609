"""The past of token rows: attention keys and values of positions that are run once and only read afterwards."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad as widen
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kedit_lab.model.hooks import Stop, on
from kedit_lab.model.lab import Lab
from kedit_lab.model.spots import real, seeing
from kedit_lab.model.tokens import by_length, pad

WASTE = (192, 512)  # tokens of padding in a pass before the next row opens another: on a CPU, on another device
LEAST = 8  # leading ids that rows must have in common before what they share is run once for all
Past = tuple[tuple[Tensor, Tensor], ...]  # (keys, values) per layer, each rows x heads x tokens x width
Known = dict[tuple[tuple[int, ...], ...], tuple[Past, Tensor]]  # (past, mask) of leads that were run before


class Filled(torch.autograd.Function):
    """The first states of a past and new ones, which are written into the room behind them: nothing is copied.

    A pass's way back must be taken before the room is filled again: autograd refuses to read what was written over.
    """

    @staticmethod
    def forward(ctx: Any, new: Tensor, held: Tensor, tokens: int) -> Tensor:
        ctx.tokens, stop = tokens, tokens + new.shape[-2]
        held[..., tokens:stop, :] = new
        return held[..., :stop, :].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[..., ctx.tokens :, :], None, None


class FrozenLayer(DynamicLayer):
    """Attention keys and values of one layer's first ``tokens`` (all, unless given): a pass reads them, what it adds
    goes into the room behind them, or into a copy where there is none."""

    def __init__(self, keys: Tensor, values: Tensor, tokens: int | None = None) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.tokens = keys.shape[-2] if tokens is None else tokens

    def get_seq_length(self) -> int:
        return self.tokens

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        pairs = ((self.keys, key_states), (self.values, value_states))
        if self.tokens == self.keys.shape[-2]:
            keys, values = (torch.cat(pair, -2) for pair in pairs)
        else:
            keys, values = (Filled.apply(new, held, self.tokens) for held, new in pairs)
        return keys, values


class GrowingLayer(FrozenLayer):
    """The same, and what a pass adds stays."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = super().update(key_states, value_states)
        self.tokens = self.keys.shape[-2]
        return self.keys, self.values


def taken(past: Past, rows: Int[Tensor, " rows"]) -> Past:
    """Some rows (indices) of a past, whose layers may lie on several devices, or be one and the same; all: itself."""
    if not past or (len(rows) == len(past[0][0]) and torch.equal(rows, torch.arange(len(rows), device=rows.device))):
        return past
    once = {id(pair): tuple(x[rows.to(x.device)] for x in pair) for pair in past}
    return tuple(once[id(pair)] for pair in past)


def halt(_hidden: Tensor) -> None:
    """What is called where nothing further is needed: ends the pass."""
    raise Stop


def waste(lab: Lab) -> int:
    """Tokens of padding that a pass may hold: on a GPU a few hundred tokens more cost less than another pass."""
    return WASTE[0 if lab.anchor.is_cpu else 1]


def room_behind(lab: Lab, tokens: int) -> int:
    """Columns behind a past that passes write into: a GPU saves a copy; a CPU copies sooner than it calls autograd."""
    return 0 if lab.anchor.is_cpu else tokens


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


def extended(lab: Lab, past: Past, seen: Tensor, rows: Sequence[tuple[int, ...]], left: bool,
             last: int) -> tuple[Past, Tensor]:  # fmt: skip
    """(past, mask) behind more ids of every row. The pass ends at the ``last`` block's attention: no more is kept."""
    if past and not any(rows):
        return past, seen
    batch = pad([row or (0,) for row in rows], lab.anchor, left)
    batch["attention_mask"] *= torch.tensor([[bool(row)] for row in rows], device=seen.device)
    mask = torch.cat([seen, batch["attention_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, seen.shape[1] :]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}
    cache = Cache(layers=[GrowingLayer(*pair) for pair in past]) if past else DynamicCache()
    mlps, spots = map(lab.arch.mlp_module, range(lab.arch.layers)), real(batch["attention_mask"])
    with suppress(Stop), seeing((mlp, spots) for mlp in mlps), on(lab.arch.attention[last].module, True, halt):
        lab.model.base_model(**lab.inputs(inputs), past_key_values=cache, use_cache=True)
    return tuple((layer.keys, layer.values) for layer in cache.layers), mask


def aligned(past: Past, mask: Int[Tensor, "rows tokens"], width: int) -> tuple[Past, Int[Tensor, "rows width"]]:
    """The same with all padding on the left, ``width`` positions in all."""
    missing = max(0, width - mask.shape[1])
    order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - width + missing :]
    place, row = widen(order, (missing, 0)), torch.arange(len(mask), device=mask.device)[:, None]
    there = lambda x: x[row.to(x.device), :, place.to(x.device)].transpose(1, 2)  # noqa: E731
    return tuple((there(k), there(v)) for k, v in past), widen(mask.gather(1, order), (missing, 0))


@torch.no_grad()
def unsorted(lab: Lab, rows: Sequence[tuple[int, ...]], last: int = -1,
             known: Known | None = None) -> tuple[Past, Tensor, Int[Tensor, " rows"]]:  # fmt: skip
    """(past, mask, where each row is in them) of rows of ids, padded on the left, up to block ``last``.

    Equal rows, and what rows have in common in front, are run once; the latter once for calls one behind the other that
    share ``known``, ``last`` and the model as it is. Nothing is kept where all rows are empty. Rows never have gaps
    between their tokens, as sliding windows count.
    """
    lab.arch.fit(rows)
    once = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    apart = list(once)
    width, shared, nothing = max(map(len, apart)), leads(apart), torch.zeros(len(apart), 0, dtype=torch.long)
    nothing = nothing.to(lab.anchor.device)
    if not width:
        return (), nothing, nothing.new_zeros(len(rows))
    unique = list(dict.fromkeys(shared))
    known = {} if known is None else known
    if any(unique) and tuple(unique) not in known:
        known.clear()  # of other leads
        known[tuple(unique)] = extended(lab, (), nothing[: len(unique)], unique, True, last)
    lead, seen = known.get(tuple(unique), ((), nothing))
    rest = [row[len(start) :] for row, start in zip(apart, shared, strict=True)]
    parts = by_length([len(ids) for ids in rest], waste(lab))
    found = []
    for part in parts:
        owner = torch.tensor([unique.index(shared[i]) for i in part], device=nothing.device)
        found.append(
            aligned(*extended(lab, taken(lead, owner), seen[owner], [rest[i] for i in part], False, last), width)
        )
    place = {i: at for at, i in enumerate(i for part in parts for i in part)}
    back = torch.tensor([place[once[row]] for row in rows], device=nothing.device)
    if len(found) == 1:
        return *found[0], back
    layers = zip(*(past for past, _ in found), strict=True)
    past = tuple(tuple(torch.cat(some) for some in zip(*layer, strict=True)) for layer in layers)
    return past, torch.cat([mask for _, mask in found]), back


def remembered(lab: Lab, rows: Sequence[tuple[int, ...]], last: int = -1,
               known: Known | None = None) -> tuple[Past, Int[Tensor, "rows width"]]:  # fmt: skip
    """(past, mask) of rows of ids in their order, see ``unsorted``."""
    past, mask, back = unsorted(lab, rows, last, known)
    return taken(past, back), mask[back]


def narrowed(past: Past, mask: Tensor, rows: Int[Tensor, " rows"], room: int = 0) -> tuple[Past, Tensor]:
    """(past, mask) of some rows (indices), no wider than the longest of them; with room, a copy that ends with it."""
    unused = mask.shape[1] - int(mask[rows].sum(1).max())
    if unused == mask.shape[1]:
        return (), mask[rows, unused:]
    own = tuple((k[:, :, unused:], v[:, :, unused:]) for k, v in past)
    if not room:
        return taken(own, rows), mask[rows, unused:]
    roomy = lambda x: widen(x[rows.to(x.device)], (0, 0, 0, room))  # noqa: E731
    return tuple((roomy(k), roomy(v)) for k, v in own), mask[rows, unused:]


def behind(past: Past, tokens: int | None = None) -> dict[str, Any]:
    """What a model's forward is told of a past of so many tokens (all, unless given) that it reads."""
    return {"past_key_values": Cache(layers=[FrozenLayer(*pair, tokens) for pair in past]) if past else None,
            "use_cache": bool(past)}  # fmt: skip
