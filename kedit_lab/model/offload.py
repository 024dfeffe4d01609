"""Weights that accelerate keeps on the CPU while their modules run elsewhere: where they rest, and how they are lent.

Between two passes accelerate leaves such weights without numbers. Here a module holds the resting weight itself, which
is read and written like any other, and a copy of it on the device where it runs for as long as it runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Lending:
    """A module's forward on copies of those of its weights and buffers that rest on the CPU."""

    def __init__(self, module: nn.Module, device: torch.device, resting: list[tuple[dict, str, Tensor]]) -> None:
        self.plain, self.device, self.resting = module.forward, device, resting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.lent():
            return self.plain(*args, **kwargs)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Copies in the place of what rests, which is back behind it, whatever happens.

        Autograd keeps no copy for the way back, which makes its own: a pass holds one module's weights at a time.
        """
        lenders: dict[int, Tensor] = {}

        def packed(kept: Tensor) -> Any:
            rests = lenders.get(kept.untyped_storage()._cdata)
            # detached, or what an operation saves of its own result would keep that operation alive for good
            return kept.detach() if rests is None else (rests, kept.shape, kept.stride(), kept.storage_offset())

        def unpacked(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            rests, *view = kept
            return copied(rests, self.device).as_strided(*view)

        try:
            for store, name, rests in self.resting:
                store[name] = copied(rests, self.device)
                lenders[store[name].untyped_storage()._cdata] = rests.detach()
            with saved_tensors_hooks(packed, unpacked):
                yield
        finally:
            for store, name, rests in self.resting:
                store[name] = rests


def settle(model: nn.Module) -> None:
    """Let offloaded weights rest in their modules; those on a disk, or of ``preload_module_classes``, stay away."""
    tied: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for hook in placing(module):
            if hook.offload and not hook.place_submodules:
                rest(module, hook, tied)


def placing(module: nn.Module) -> list[AlignDevicesHook]:
    """accelerate's hooks that place a module's weights."""
    hook = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    return [one for one in hooks if isinstance(one, AlignDevicesHook)]


def rest(module: nn.Module, hook: AlignDevicesHook, tied: dict[int, nn.Parameter]) -> None:
    """One module's weights in place, and its forward on copies of them; nothing is done if they are on a disk."""
    held = module._parameters, module._buffers
    away = [(store, name) for store in held for name, tensor in store.items() if tensor is not None and tensor.is_meta]
    if away and hook.weights_map[away[0][1]] is not hook.weights_map[away[0][1]]:
        return  # read anew at every look
    for store, name in away:
        tensor = hook.weights_map[name]
        if store is module._parameters:
            tensor = tied.setdefault(tensor.data_ptr(), nn.Parameter(tensor, requires_grad=False))
        store[name] = tensor
    hook.offload = False
    if away:
        resting = [(store, name, store[name]) for store, name in away]
        module.forward = Lending(module, torch.device(hook.execution_device), resting)


def offloaded(module: nn.Module) -> bool:
    """Whether a module's weights rest elsewhere than where it runs."""
    return isinstance(module.forward, Lending)


def runs_on(module: nn.Module) -> torch.device:
    """The device on which a module with a weight runs."""
    return module.forward.device if offloaded(module) else module.weight.device


def spread(model: nn.Module) -> bool:
    """Whether accelerate has placed a model's modules."""
    return any(placing(module) for module in model.modules())


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, also where that is the tensor's own; gradients go through."""
    return tensor.to(device, copy=True)
