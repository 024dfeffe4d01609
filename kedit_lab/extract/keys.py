"""Keys and values of facts: what enters and what leaves an MLP's output projection at the subject's last token."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.model.hooks import record
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.past import Known, behind, remembered
from kedit_lab.model.process import release
from kedit_lab.types import Fact, several

CHUNK = (128, 1024)  # rows of one forward pass: on a CPU, on another device
WIDE, LEAST = 2**17, 16  # numbers in one key of every row that a CPU's pass may hold, but so many rows it does
ROW = 192  # keys that a row of a pass holds, about, its past among them
PASSES = 16  # passes whose states are held at once where means of them are all that is kept
Prefixes = Sequence[str] | None | Literal["auto"]


def contexts(lab: Lab, prefixes: Prefixes = "auto") -> tuple[str, ...]:
    """The empty prefix and those given; "auto" samples MEMIT's five from the model, None is the bare prompt alone."""
    if prefixes is None:
        return ("",)
    return ("", *(lab.prefixes() if prefixes == "auto" else prefixes))


def grouped_mean(states: Float[Tensor, "facts contexts width"]) -> Float[Tensor, "facts width"]:
    """MEMIT's average over contexts: the bare prompt weighs one half, the generated prefixes share the other."""
    if states.shape[1] == 1:
        return states[:, 0]
    return (states[:, 0] + states[:, 1:].mean(1)) / 2


def read(
    lab: Lab, facts: Sequence[Fact], part: str, layers: Sequence[int], prefixes: Prefixes, token: str,
    of: Callable[[Tensor], Tensor] | None = None,
) -> dict[int, Float[Tensor, "facts *contexts width"]]:  # fmt: skip
    """A part's state at every fact's lookup token behind every context, layer by layer, in chunks of rows.

    With ``of``, a function of some facts' states (their mean over contexts, say), what it gives is all that is kept.
    """
    facts = several("facts", facts, Fact)
    if not facts:
        raise ValueError("there are no facts to read; give at least one")
    texts = contexts(lab, prefixes)
    leads: Known = {}
    layers = [lab.arch.layer(layer) for layer in layers]
    if of is None:
        return gathered(lab, facts, part, layers, texts, token, leads)
    kept: dict[int, Tensor] = {}
    for some in chunks(range(len(facts)), max(1, PASSES * rows_of_a_pass(lab) // len(texts))):
        if lab.work is not None:
            release()
        asked = facts[some.start : some.stop]
        for layer, states in gathered(lab, asked, part, layers, texts, token, leads).items():
            found = of(states)
            if layer not in kept:
                kept[layer] = found.new_empty(len(facts), *found.shape[1:])
            kept[layer][some.start : some.stop] = found
            del states, found
    return kept


def rows_of_a_pass(lab: Lab) -> int:
    """Rows that are read together: few on a CPU, as in the reference implementation, and fewer where keys are wide; no
    more than hold about ``lab.work`` bytes."""
    rows = min(CHUNK[0], max(LEAST, WIDE // lab.arch.d_k)) if lab.anchor.is_cpu else CHUNK[1]
    held = ROW * lab.arch.d_k * lab.anchor.element_size()
    return rows if lab.work is None else max(1, min(rows, int(lab.work // held)))


@torch.no_grad()
def gathered(
    lab: Lab, facts: Sequence[Fact], part: str, layers: Sequence[int], texts: Sequence[str], token: str, leads: Known
) -> dict[int, Float[Tensor, "facts contexts width"]]:
    """The states of ``read``, rows of similar length in one pass."""
    rows = lab.prompts(facts, texts, token)
    cut = [ids[: at + 1] for ids, at in rows]  # nothing behind the lookup token can change its state
    order = sorted(range(len(rows)), key=lambda i: len(cut[i]))
    states: dict[int, Tensor] = {}
    for batch in chunks(order, rows_of_a_pass(lab)):
        inputs, at = prepared(lab, [cut[i] for i in batch], max(layers) if len(texts) > 1 else None, leads)
        with record(lab, part, layers, stop=True) as seen:
            seen.forward(**inputs)
        for layer in layers:
            found = seen[part, layer][range(len(batch)), at]
            states.setdefault(layer, found.new_empty(len(rows), found.shape[1]))[batch] = found
    return {layer: found.unflatten(0, (-1, len(texts))) for layer, found in states.items()}


def prepared(lab: Lab, rows: Sequence[tuple[int, ...]], last: int | None,
             leads: Known) -> tuple[dict[str, Any], list[int]]:  # fmt: skip
    """(inputs of a pass, the position of every row's last token in it).

    With the number of the ``last`` block that is read, all but the last token are run before, prefixes that rows share
    once for all of them (and for all calls with the same ``leads``).
    """
    if last is None:
        return lab.batch(rows) | {"use_cache": False}, [len(row) - 1 for row in rows]
    past, before = remembered(lab, [row[:-1] for row in rows], last, leads)
    ids = torch.tensor([row[-1:] for row in rows], device=before.device)
    mask = torch.cat([before, torch.ones_like(ids)], 1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
    return lab.inputs(inputs) | behind(past), [0] * len(rows)


@overload
def keys(lab: Lab, facts: Sequence[Fact], layer: int, prefixes: Prefixes = ..., token: str = ...) -> Tensor: ...
@overload
def keys(
    lab: Lab, facts: Sequence[Fact], layer: Sequence[int], prefixes: Prefixes = ..., token: str = ...
) -> dict[int, Tensor]: ...
def keys(
    lab: Lab,
    facts: Sequence[Fact],
    layer: int | Sequence[int],
    prefixes: Prefixes = "auto",
    token: str = "subject_last",
) -> Float[Tensor, "facts d_k"] | dict[int, Float[Tensor, "facts d_k"]]:
    """Keys k: the input of the MLP's output projection at the lookup token, one fact per row (column form: K, d_k x N).

    Averaged over contexts as in MEMIT's code: the bare prompt counts one half, the sampled ``prefixes`` share the rest;
    ``prefixes=None`` reads the bare prompt. ``token`` is "subject_last" (every paper's choice) or "last" (the prompt's
    last token). Several layers at once give a dict by layer. Raises ValueError for an unknown layer or token rule.
    """
    several = isinstance(layer, Iterable)
    averaged = read(lab, facts, "key", layer if several else [layer], prefixes, token, grouped_mean)
    return averaged if several else averaged[lab.arch.layer(layer)]


def values(
    lab: Lab, facts: Sequence[Fact], layer: int, prefixes: Prefixes = None, token: str = "subject_last"
) -> Float[Tensor, "facts d_model"]:
    """Values v: what the MLP's output projection writes at the lookup token (v = W k, and a bias where there is one).

    Read behind the bare prompt unless ``prefixes`` are given, like the current values in MEMIT's code.
    """
    return read(lab, facts, "mlp", [layer], prefixes, token, grouped_mean)[lab.arch.layer(layer)]


def streams(lab: Lab, facts: Sequence[Fact], layer: int, token: str = "subject_last") -> Float[Tensor, "facts d_model"]:
    """The residual stream h behind block ``layer`` at the lookup token of the bare prompt."""
    return read(lab, facts, "block", [layer], None, token)[lab.arch.layer(layer)][:, 0]
