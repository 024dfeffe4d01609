"""The tail of a forward pass: only what can change when something is written at the lookup tokens.

Below the written layer nothing depends on what is written, and before the lookup token nothing does at any layer.
So the positions before it are run once and kept as attention keys and values, the lower blocks are run once and then
passed through, and every later call costs the upper blocks on the tokens from the lookup token on. MLPs see no padding,
and the last one no position that nobody reads, once it is said which are read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit_lab.model.hooks import Stop, on
from kedit_lab.model.lab import Lab
from kedit_lab.model.past import Past, behind, narrowed, remembered, taken
from kedit_lab.model.tokens import Row, pad


@dataclass(frozen=True)
class Tail:
    """Rows cut at their lookup tokens, ready to be run from block ``start`` on; column 0 is the lookup token.

    ``hidden`` (rows x tokens x d_model) is the input of block ``start`` (of the final norm if ``start`` is the number
    of layers) from the lookup token on; ``past`` holds (keys, values) per layer of the positions before it. Only the
    positions in ``needed`` (rows x tokens, counted through) come out right where that is given; None: all.
    """

    lab: Lab
    start: int
    tuples: bool
    hidden: Tensor
    inputs: dict[str, Tensor]
    past: Past
    needed: Int[Tensor, " spots"] | None = None

    @classmethod
    def of(cls, lab: Lab, rows: Sequence[Row], start: int) -> "Tail":
        """Run everything that does not depend on what will be written at the rows' lookup tokens."""
        return cls.each(lab, rows, [range(len(rows))], start)[0]

    @classmethod
    @torch.no_grad()
    def each(cls, lab: Lab, rows: Sequence[Row], parts: Sequence[Sequence[int]], start: int) -> list["Tail"]:
        """The tails of several parts of the rows (indices), which are to be run apart: their pasts are run together."""
        past, before = remembered(lab, [row.ids[: row.lookup] for row in rows])
        return [cls.with_past(lab, [rows[i] for i in part], start, *narrowed(past, before, part)) for part in parts]

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
        try:
            with suppress(Stop), on(*blank.entrance, arrive):
                blank.run()
        finally:
            kind.remove()
        return cls(lab, start, seen["tuples"], seen["hidden"], inputs, past)

    @property
    def entrance(self) -> tuple[nn.Module, bool]:
        """The module whose input is ``hidden``: block ``start``, or the final norm behind the last block."""
        blocks = self.lab.arch.blocks
        return (blocks[self.start] if self.start < len(blocks) else self.lab.arch.norm), True

    def run(self) -> Float[Tensor, "rows tokens d_model"]:
        """The base model on the tail's tokens with its frozen past."""
        return self.lab.model.base_model(**self.lab.inputs(self.inputs), **behind(self.past)).last_hidden_state

    def __call__(self, write: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "rows tokens d_model"]:
        """Final-norm hidden states when ``write(hidden)`` enters block ``start``; gradients flow into ``write``.

        Without it the hidden states enter as they are, and the caller may write inside the block.
        """
        enter = (lambda _hidden: self.hidden) if write is None else (lambda _hidden: write(self.hidden))
        with self.skipped(), self.trimmed(self.start + (write is None)), on(*self.entrance, enter):
            return self.run()

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Let the hidden state pass through all blocks below ``start`` unchanged."""
        lower = list(self.lab.arch.blocks)[: self.start]
        patched = {block: block.__dict__["forward"] for block in lower if "forward" in block.__dict__}  # by accelerate
        for block in lower:
            block.forward = (lambda hidden, *_a, **_k: (hidden,)) if self.tuples else (lambda hidden, *_a, **_k: hidden)
        try:
            yield
        finally:
            for block in lower:
                del block.forward
            for block, forward in patched.items():
                block.forward = forward

    @cached_property
    def real(self) -> Int[Tensor, " spots"] | None:
        """Positions that are no padding (counted through); None: all."""
        mask = self.inputs["attention_mask"][:, -self.hidden.shape[1] :].flatten()
        return None if mask.all() else mask.nonzero()[:, 0]

    @contextmanager
    def trimmed(self, start: int) -> Iterator[None]:
        """Let MLPs (that are modules) from block ``start`` on see no padding, and the last one what is needed alone.

        An MLP sees every position by itself; its output elsewhere is zero.
        """
        last = self.lab.arch.layers - 1
        with ExitStack() as stack:
            for layer in range(start, last + 1):
                spots = self.real if layer < last or self.needed is None else self.needed
                mlp = self.lab.arch.mlp_module(layer)
                if spots is not None and mlp is not None:
                    stack.enter_context(seeing(mlp, spots))
            yield

    def reading(self, row: Int[Tensor, " spots"], column: Int[Tensor, " spots"]) -> "Tail":
        """This tail when only these positions of its output will be read."""
        return replace(self, needed=(row * self.hidden.shape[1] + column).unique())

    def select(self, rows: Tensor) -> "Tail":
        """The tail of a subset of the rows (indices), with all positions to be read."""
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        return Tail(self.lab, self.start, self.tuples, self.hidden[rows], inputs, taken(self.past, rows))


@contextmanager
def seeing(module: nn.Module, spots: Tensor) -> Iterator[None]:
    """Let a position-wise module see some positions alone."""
    forward, patched = module.forward, module.__dict__.get("forward")
    module.forward = partial(at_spots, forward, spots)
    try:
        yield
    finally:
        del module.forward
        if patched is not None:
            module.forward = patched


def at_spots(forward: Callable[..., Tensor], spots: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A position-wise module's forward on some positions of its inputs (rows x tokens x width), zero at the others."""
    whole = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    spots = spots.to(whole.device)
    some = lambda x: x.flatten(0, 1).index_select(0, spots)[None] if isinstance(x, Tensor) else x  # noqa: E731
    out = forward(*map(some, args), **{name: some(x) for name, x in kwargs.items()})
    zeros = out.new_zeros(whole.shape[0] * whole.shape[1], out.shape[-1])
    return zeros.index_copy(0, spots, out[0]).unflatten(0, whole.shape[:2])
