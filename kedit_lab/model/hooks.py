"""Reading and replacing what flows between a model's parts, as context managers that always clean up.

Parts: ``key`` (input of the MLP's output projection), ``mlp`` and ``attention`` (what those output projections
write), ``block`` (a block's output, the residual stream behind it) and ``input`` (a block's input).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from kedit_lab.model.arch import Arch

PARTS = ("key", "mlp", "attention", "block", "input")


class Stop(Exception):
    """Ends a forward pass once everything that was asked for has been seen."""


def first(output: Any) -> Tensor:
    """The hidden state in a module's output, which is a tensor in some architectures and a tuple in others."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, hidden: Tensor) -> Any:
    """``output`` with its hidden state exchanged."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def part(arch: Arch, name: str, layer: int) -> tuple[nn.Module, bool]:
    """(module to hook, whether its input is meant instead of its output)."""
    layer = arch.layer(layer)
    if name not in PARTS:
        raise ValueError(f"unknown part {name!r}; the parts are {', '.join(PARTS)}")
    modules = {"key": arch.mlp, "mlp": arch.mlp, "attention": arch.attention}
    if name in modules:
        return modules[name][layer].module, name == "key"
    return arch.blocks[layer], name == "input"


def surely(undo: Callable[[], None]) -> None:
    """Undo something, once more if it is interrupted (by Ctrl-C, say), which is raised when it is done."""
    try:
        undo()
    except BaseException:
        undo()
        raise


def entering(fn: Callable, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A forward pre-hook: ``fn`` on the hidden state among a module's arguments."""
    new = fn(args[0] if args else kwargs["hidden_states"])
    if new is None:
        return None
    return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})


def leaving(fn: Callable, _module: nn.Module, _args: tuple, output: Any) -> Any:
    """A forward hook: ``fn`` on the hidden state in a module's output."""
    new = fn(first(output))
    return None if new is None else with_first(output, new)


@contextmanager
def on(module: nn.Module, is_input: bool, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``fn`` with the module's hidden state (input or output); what it returns, if anything, takes its place."""
    if is_input:
        handle = module.register_forward_pre_hook(partial(entering, fn), with_kwargs=True)
    else:
        handle = module.register_forward_hook(partial(leaving, fn))
    try:
        yield
    finally:
        handle.remove()


def unfolded(fn: Callable, sizes: list[int], hidden: Tensor) -> Tensor | None:
    """``fn`` on a state as batch x tokens x width, given back in the shape in which it came."""
    new = fn(hidden.view(*sizes, hidden.shape[-1]))
    return None if new is None else new.reshape(hidden.shape)


@contextmanager
def at(arch: Arch, name: str, layer: int, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """``on`` for a part of a layer, always as batch x tokens x width (OPT's MLP sees all tokens as one long row)."""
    module, is_input = part(arch, name, layer)
    block = arch.blocks[arch.layer(layer)]
    if module is block:
        with on(module, is_input, fn):
            yield
        return
    sizes: list[int] = []
    with (
        on(block, True, lambda hidden: sizes.__setitem__(slice(None), hidden.shape[:2])),
        on(module, is_input, partial(unfolded, fn, sizes)),
    ):
        yield


def hooked(model: nn.Module) -> bool:
    """Whether somebody reads or replaces what flows between a model's parts."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@dataclass
class Seen:
    """What ``record`` saw in the latest forward pass: ``seen["key", 3]`` is batch x tokens x width."""

    model: nn.Module
    wanted: set[tuple[str, int]]
    stop: bool
    states: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __getitem__(self, spot: tuple[str, int]) -> Tensor:
        if spot not in self.states:
            raise KeyError(
                f"{spot} was not seen; recorded: {sorted(self.wanted)}; run the model inside the context first"
            )
        return self.states[spot]

    def forward(self, **inputs: Any) -> Any:
        """Run the model; with ``stop`` the pass ends after the last recorded part and None is returned."""
        self.states.clear()
        with suppress(Stop):
            return self.model(**inputs)
        return None

    def see(self, spot: tuple[str, int], hidden: Tensor) -> Tensor:
        """Keep a state and hand the model a copy: Falcon adds its attention's output to its MLP's in place."""
        self.states[spot] = hidden
        if self.stop and len(self.states) == len(self.wanted):
            raise Stop
        return hidden.clone()


@contextmanager
def record(lab: Any, parts: Sequence[str] | str, layers: Sequence[int], stop: bool = False) -> Iterator[Seen]:
    """Record the given parts at the given layers of every forward pass inside the context.

    ``lab`` is anything with ``model`` and ``arch``. Call ``seen.forward(**inputs)``, or run the model yourself;
    ``stop=True`` ends ``seen.forward`` after the last recorded part, so that upper layers cost nothing.
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    spots = [(name, layer) for name in parts for layer in layers]
    seen = Seen(lab.model, {(name, lab.arch.layer(layer)) for name, layer in spots}, stop)
    with ExitStack() as stack:
        for name, layer in sorted(seen.wanted):
            stack.enter_context(at(lab.arch, name, layer, lambda hidden, spot=(name, layer): seen.see(spot, hidden)))
        yield seen


@contextmanager
def replace(lab: Any, name: str, layer: int, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the context, the part's hidden state h (batch x tokens x width) is exchanged for ``fn(h)``."""
    with at(lab.arch, name, layer, fn):
        yield
