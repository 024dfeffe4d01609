"""The tail of a forward pass: only what can change when something is written at the lookup tokens.

Below the written layer nothing depends on what is written, and before the lookup token nothing does at any layer.
So the positions before it are run once and kept as attention keys and values, the lower blocks are run once and then
passed through, and every later call costs the upper blocks on the tokens from the lookup token on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kedit_lab.model.hooks import on
from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import Row, pad


class FrozenLayer(DynamicLayer):
    """Attention keys and values of one layer that a forward pass reads but never extends."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


@dataclass(frozen=True)
class Tail:
    """Rows cut at their lookup tokens, ready to be run from block ``start`` on; column 0 is the lookup token.

    ``hidden`` (rows x tokens x d_model) is the input of block ``start`` (of the final norm if ``start`` is the number
    of layers) from the lookup token on; ``past`` holds (keys, values) per layer of the positions before it.
    """

    lab: Lab
    start: int
    tuples: bool
    hidden: Tensor
    inputs: dict[str, Tensor]
    past: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, lab: Lab, rows: Sequence[Row], start: int) -> "Tail":
        """Run everything that does not depend on what will be written at the rows' lookup tokens."""
        before = pad([row.ids[: row.lookup] for row in rows], lab.anchor, left=True)
        after = pad([row.ids[row.lookup :] for row in rows], lab.anchor)
        mask = torch.cat([before["attention_mask"], after["attention_mask"]], 1)
        width = before["input_ids"].shape[1]
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        inputs = {"input_ids": after["input_ids"], "attention_mask": mask, "position_ids": positions[:, width:]}
        past: tuple[tuple[Tensor, Tensor], ...] = ()
        if width:
            cache = DynamicCache()
            lab.model.base_model(**lab.inputs(before), past_key_values=cache, use_cache=True)
            past = tuple((layer.keys, layer.values) for layer in cache.layers)
        seen: dict[str, Any] = {}
        blank = cls(lab, start, False, torch.empty(0), inputs, past)
        kind = lab.arch.blocks[0].register_forward_hook(lambda _m, _i, out: seen.update(tuples=isinstance(out, tuple)))
        try:
            with on(*blank.entrance, lambda hidden: seen.update(hidden=hidden)):
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
        past = Cache(layers=[FrozenLayer(*pair) for pair in self.past]) if self.past else None
        out = self.lab.model.base_model(
            **self.lab.inputs(self.inputs), past_key_values=past, use_cache=past is not None
        )
        return out.last_hidden_state

    def __call__(self, write: Callable[[Tensor], Tensor]) -> Float[Tensor, "rows tokens d_model"]:
        """Final-norm hidden states when ``write(hidden)`` enters block ``start``; gradients flow into ``write``."""
        with self.skipped(), on(*self.entrance, lambda _hidden: write(self.hidden)):
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

    def select(self, rows: Tensor) -> "Tail":
        """The tail of a subset of the rows (indices)."""
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        past = tuple((keys[rows], values[rows]) for keys, values in self.past)
        return Tail(self.lab, self.start, self.tuples, self.hidden[rows], inputs, past)
