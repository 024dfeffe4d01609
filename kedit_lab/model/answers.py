"""The states in front of answers' tokens: each prompt is run once, however many answers it has."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.model.hooks import hooked
from kedit_lab.model.lab import Lab, accepted, chunks
from kedit_lab.model.past import Known, waste
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import Row, by_length

TOKENS = 4096  # of one forward pass; half as many where it is one behind prompts that were run before


def answered(lab: Lab, rows: Sequence[Row]) -> Iterator[tuple[list[Row], Float[Tensor, "tokens d_model"]]]:
    """(some rows, the states in front of their answers' tokens one behind the other), until all rows have been run.

    A prompt of several rows is run once for them, unless the model keeps no keys and values or somebody has hooked it
    (``kl.record``, ``kl.replace``): those see whole rows.
    """
    times = Counter(row.prompt for row in rows)
    shares = "past_key_values" in accepted(type(lab.model)) and not hooked(lab.model)
    alone = [row for row in rows if not shares or times[row.prompt] == 1]
    together = [row for row in rows if shares and times[row.prompt] > 1]
    most = TOKENS // max((len(row.ids) for row in rows), default=1)
    for batch in chunks(sorted(alone, key=lambda row: len(row.ids)), max(1, most)):
        spots = [(i, at) for i, row in enumerate(batch) for at in row.answers]
        yield batch, picked(lab.hidden(**lab.batch([row.ids for row in batch])), spots)
    leads: Known = {}
    together.sort(key=lambda row: (len(row.prompt), row.prompt))
    for batch in chunks(together, max(2, most // 2)):  # half of them: keys and values are kept
        parts = by_length([len(row.target) for row in batch], waste(lab))
        for part, tail in zip(parts, Tail.each(lab, batch, parts, 0, leads), strict=True):
            some = [batch[i] for i in part]
            spots = [(i, at) for i, row in enumerate(some) for at in range(len(row.target))]
            tail = tail.reading(*torch.tensor(spots, device=tail.hidden.device).T)
            yield some, picked(tail(lambda hidden: hidden), spots)  # nothing is written


def picked(hidden: Float[Tensor, "rows tokens d_model"], spots: Sequence[tuple[int, int]]) -> Tensor:
    """The states at (row, column) of every spot."""
    return hidden[tuple(torch.tensor(spots, device=hidden.device).T)]
