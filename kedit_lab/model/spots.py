"""Position-wise modules that are shown fewer positions: none that is padding, none that nobody reads, or the first."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kedit_lab.model.hooks import surely


def real(mask: Int[Tensor, "rows tokens"]) -> Int[Tensor, " spots"] | None:
    """Positions that are no padding (counted through); None: all."""
    return None if mask.all() else mask.flatten().nonzero()[:, 0]


@contextmanager
def instead(module: nn.Module, call: Callable[..., Tensor]) -> Iterator[None]:
    """Let ``call(forward, ...)`` be a module's forward."""
    forward, patched = module.forward, vars(module).get("forward")

    def undo() -> None:
        vars(module).pop("forward", None)
        if patched is not None:  # by accelerate
            module.forward = patched

    try:
        module.forward = partial(call, forward)
        yield
    finally:
        surely(undo)


@contextmanager
def seeing(shown: Iterable[tuple[nn.Module | None, Tensor | None]]) -> Iterator[None]:
    """Let position-wise modules see some positions alone (None: no such module, all positions)."""
    with ExitStack() as stack:
        for module, spots in shown:
            if module is not None and spots is not None:
                stack.enter_context(instead(module, partial(at_spots, spots)))
        yield


def at_spots(spots: Tensor, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A position-wise module's forward on some positions of its inputs (rows x tokens x width), zero at the others."""
    whole = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    spots = spots.to(whole.device)
    some = lambda x: x.flatten(0, 1).index_select(0, spots)[None] if isinstance(x, Tensor) else x  # noqa: E731
    out = forward(*map(some, args), **{name: some(x) for name, x in kwargs.items()})
    zeros = out.new_zeros(whole.shape[0] * whole.shape[1], out.shape[-1])
    return zeros.index_copy(0, spots, out[0]).unflatten(0, whole.shape[:2])


def first_alone(kept: dict[str, Tensor], name: str, entered: dict[str, Tensor], forward: Callable[..., Tensor],
                hidden: Tensor) -> Tensor:  # fmt: skip
    """A position-wise module's forward where only the first column changes: the others are run once, and kept.

    That is so of what ``entered`` alone: a module that is given something else is run on all of it.
    """
    if hidden is not entered.get("hidden"):
        return forward(hidden)
    if name not in kept:
        with torch.no_grad():
            kept[name] = forward(hidden[:, 1:].contiguous())
    return torch.cat([forward(hidden[:, :1].contiguous()), kept[name]], 1)
