"""The tail of a forward pass: only what can change when something is written at the lookup tokens.

Below the written layer nothing depends on what is written, and before the lookup token nothing does at any layer.
So the positions before it are run once and kept as attention keys and values, the lower blocks are run once and then
passed through, and every later call costs the upper blocks on the tokens from the lookup token on. MLPs see no padding,
the last block's projections no position that nobody reads, once it is said which are read, and what the attention of
the first upper block makes of all but the lookup tokens is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit_lab.model.arch import Projection
from kedit_lab.model.hooks import Stop, on
from kedit_lab.model.lab import Lab
from kedit_lab.model.past import Known, Past, behind, narrowed, room_behind, taken, unsorted
from kedit_lab.model.spots import first_alone, instead, real, seeing
from kedit_lab.model.tokens import Row, pad


@dataclass(frozen=True)
class Tail:
    """Rows cut at their lookup tokens, ready to be run from block ``start`` on; column 0 is the lookup token.

    ``hidden`` (rows x tokens x d_model) is the input of block ``start`` (of the final norm if ``start`` is the number
    of layers) from the lookup token on; ``past`` holds (keys, values) per layer of the positions before it (below
    ``start``, where none is read again, block ``start``'s), on a GPU with room behind them that every pass fills anew.
    Only the positions in ``needed`` (rows x tokens, counted through) come out right where that is given; None: all.
    ``kept`` is what projections of what enters the attention of block ``start`` said of all columns but the first.
    """

    lab: Lab
    start: int
    tuples: bool
    hidden: Tensor
    inputs: dict[str, Tensor]
    past: Past
    needed: Int[Tensor, " spots"] | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, lab: Lab, rows: Sequence[Row], start: int) -> "Tail":
        """Run everything that does not depend on what will be written at the rows' lookup tokens."""
        return cls.each(lab, rows, [range(len(rows))], start)[0]

    @classmethod
    @torch.no_grad()
    def each(cls, lab: Lab, rows: Sequence[Row], parts: Sequence[Sequence[int]], start: int,
             known: Known | None = None) -> list["Tail"]:  # fmt: skip
        """The tails of several parts of the rows (indices), which are to be run apart: their pasts are run together.

        Calls that share ``known`` run leads of their rows once, while the model is as it is.
        """
        lab.arch.fit([row.ids for row in rows])
        past, before, at = unsorted(lab, [row.ids[: row.lookup] for row in rows], known=known)
        room = [room_behind(lab, max(len(rows[i].ids) - rows[i].lookup for i in part)) for part in parts]
        own = [narrowed(past, before, at[list(part)], wide) for part, wide in zip(parts, room, strict=True)]
        return [cls.with_past(lab, [rows[i] for i in part], start, *of) for part, of in zip(parts, own, strict=True)]

    @classmethod
    def with_past(cls, lab: Lab, rows: Sequence[Row], start: int, past: Past, before: Tensor) -> "Tail":
        """The tail of rows behind a past with its mask."""
        after = pad([row.ids[row.lookup :] for row in rows], lab.anchor)
        mask = torch.cat([before, after["attention_mask"]], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, before.shape[1] :]
        inputs = {"input_ids": after["input_ids"], "attention_mask": mask, "position_ids": positions}
        seen: dict[str, Any] = {"tuples": False}
        blank = cls(lab, start, False, torch.empty(0), inputs, past)

        def arrive(hidden: Tensor) -> None:
            seen.update(hidden=hidden)
            raise Stop

        kind = lab.arch.blocks[0].register_forward_hook(lambda _m, _i, out: seen.update(tuples=isinstance(out, tuple)))
        mlps, spots = map(lab.arch.mlp_module, range(start)), real(after["attention_mask"])
        try:
            with suppress(Stop), seeing((mlp, spots) for mlp in mlps), on(*blank.entrance, arrive):
                blank.run()
        finally:
            kind.remove()
        top = len(past) - 1
        upper = tuple(past[max(at, min(start, top))] for at in range(len(past)))  # no lower block is run again
        return cls(lab, start, seen["tuples"], seen["hidden"], inputs, upper)

    @property
    def entrance(self) -> tuple[nn.Module, bool]:
        """The module whose input is ``hidden``: block ``start``, or the final norm behind the last block."""
        blocks = self.lab.arch.blocks
        return (blocks[self.start] if self.start < len(blocks) else self.lab.arch.norm), True

    def run(self) -> Float[Tensor, "rows tokens d_model"]:
        """The base model on the tail's tokens with its frozen past."""
        past = behind(self.past, self.inputs["attention_mask"].shape[1] - self.width)
        return self.lab.model.base_model(**self.lab.inputs(self.inputs), **past).last_hidden_state

    @property
    def width(self) -> int:
        """Tokens from the lookup token on."""
        return self.inputs["input_ids"].shape[1]

    def __call__(self, write: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "rows tokens d_model"]:
        """Final-norm hidden states when ``write(hidden)`` enters block ``start``; gradients flow into ``write``.

        It may change column 0. Without it the hidden states enter as they are, and the caller may write inside the
        block, behind its attention's projections of them.
        """
        enter = (lambda _hidden: self.hidden) if write is None else (lambda _hidden: write(self.hidden))
        with self.skipped(), self.trimmed(self.start + (write is None)), on(*self.entrance, enter):
            return self.run()

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Let the hidden state pass through all blocks below ``start`` unchanged."""
        through = (
            (lambda _own, hidden, *_a, **_k: (hidden,)) if self.tuples else (lambda _own, hidden, *_a, **_k: hidden)
        )
        with ExitStack() as stack:
            for block in list(self.lab.arch.blocks)[: self.start]:
                stack.enter_context(instead(block, through))
            yield

    @cached_property
    def real(self) -> Int[Tensor, " spots"] | None:
        """Positions that are no padding (counted through); None: all."""
        return real(self.inputs["attention_mask"][:, -self.width :])

    @contextmanager
    def trimmed(self, start: int) -> Iterator[None]:
        """Show modules that see every position by itself what is needed alone; their output elsewhere is zero.

        MLPs (that are modules) from block ``start`` on see no padding; the last MLP and the last attention's output
        projection, where it is said what is read, only that. Projections of the first attention's input see column 0.
        """
        last = self.lab.arch.layers - 1
        read = self.real if self.needed is None else self.needed
        shown = [(self.mlps[layer], self.real if layer < last else read) for layer in range(start, last + 1)]
        if start <= last:
            shown.append((self.lab.arch.attention[last].module, self.needed))
        with ExitStack() as stack:
            stack.enter_context(seeing(shown))
            entered: dict[str, Tensor] = {}
            if self.inner:
                attention = self.lab.arch.attention_module(self.start)
                stack.enter_context(on(attention, True, lambda hidden: entered.update(hidden=hidden)))
            for inner in self.inner:
                stack.enter_context(instead(inner.module, partial(first_alone, self.kept, inner.name, entered)))
            yield

    @cached_property
    def mlps(self) -> list[nn.Module | None]:
        """Every block's MLP, where it is a module."""
        return [self.lab.arch.mlp_module(layer) for layer in range(self.lab.arch.layers)]

    @cached_property
    def inner(self) -> list[Projection]:
        """The projections inside the attention of block ``start``, if there is one and any column but the first."""
        there = self.start < self.lab.arch.layers and self.width > 1
        return self.lab.arch.attention_inner(self.start) if there else []

    def reading(self, row: Int[Tensor, " spots"], column: Int[Tensor, " spots"]) -> "Tail":
        """This tail when only these positions of its output will be read."""
        return replace(self, needed=(row * self.width + column).unique())

    def select(self, rows: Tensor) -> "Tail":
        """The tail of a subset of the rows (indices), with all positions to be read."""
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        kept = {name: tensor[rows.to(tensor.device)] for name, tensor in self.kept.items()}
        hidden = self.hidden[rows.to(self.hidden.device)]
        return Tail(self.lab, self.start, self.tuples, hidden, inputs, taken(self.past, rows), kept=kept)
