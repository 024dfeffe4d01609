"""A pretend device: tensors that live in this machine's memory and refuse, like a GPU's, to be mixed with the CPU's.

PyTorch lets a process register one backend of its own (PrivateUse1). Inside ``pretending`` it computes on the CPU, and
raises where tensors of two devices meet, as CUDA does: single numbers on the CPU may, and an index there may. It is
registered for good, so a process of its own is the place for it. There is one such device: autograd has a queue for no
more, so what two GPUs would do with each other is not seen here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "pretend:0"
MOVES = ("aten::_to_copy", "aten::copy_")


class Backend(_DummyBackendModule):
    """What ``torch.pretend`` is asked for."""

    def get_rng_state(self, _device: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, _state: Tensor, _device: Any) -> None:
        pass


class Pretended(Tensor):
    """A tensor on the pretend device; ``held`` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Tensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(DEVICE)
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.device}: {self.held!r}"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})


class pretending(TorchDispatchMode):
    """Inside the context the pretend device makes tensors of its own, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        asked = (kwargs or {}).get("device")
        ours = any(issubclass(kind, Pretended) for kind in types) or str(asked or "").startswith("pretend")
        return computed(func, args, kwargs or {}) if ours else func(*args, **(kwargs or {}))


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """What an operation gives, where it belongs; a RuntimeError where its tensors lie on two devices."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    name, asked = func._schema.name, kwargs.get("device")
    met = [t for t in tensors if t.ndim or t.device.type != "cpu" or len(tensors) == 1]
    if "index" in name and len(args) > 1 and isinstance(args[1], (list, tuple)):
        met = [t for t in met if t.device.type != "cpu" or not any(t is i for i in args[1])]
    places = {str(t.device) for t in met}
    if len(places) > 1 and name not in MOVES:
        raise RuntimeError(f"{name}: tensors on {sorted(places)}")
    place = str(args[0].device if name == "aten::copy_" else asked or max(places or {str(t.device) for t in tensors}))
    if asked is not None:
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"} | {"device": "cpu"}
    ours = {id(t.held): t for t in tensors if isinstance(t, Pretended)}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    found = func(*args, **kwargs)
    if not place.startswith("pretend"):
        return found

    def here(x: Any) -> Any:
        return (ours[id(x)] if id(x) in ours else Pretended(x)) if isinstance(x, Tensor) else x

    return tree_map(here, found)


def strided(size: list[int], stride: list[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """A new tensor of a shape."""
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Between the two kinds of memory."""
    plain = [x.held if isinstance(x, Pretended) else x for x in (target, source)]
    plain[0].copy_(plain[1], non_blocking)
    return target


def register() -> torch.library.Library:
    """Make the device known to PyTorch; it is as long as what this returns."""
    _setup_privateuseone_for_python_backend("pretend", Backend())
    kept = torch.library.Library("aten", "IMPL")  # what torch.tensor(..., device=) calls behind the mode's back
    kept.impl("empty_strided", strided, "PrivateUse1")
    kept.impl("_copy_from", copied, "PrivateUse1")
    return kept
