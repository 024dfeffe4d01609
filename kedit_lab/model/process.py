"""What a process takes: its own copy of the model, its share of the cores, and memory that it gives back."""

import ctypes
import gc
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import torch

from kedit_lab.model.lab import Lab, load


@dataclass(frozen=True)
class Source:
    """Where a lab's model comes from, and a fingerprint of its weights."""

    name: str
    base: str
    dtype: str
    device: str
    chat: bool

    @classmethod
    def of(cls, lab: Lab) -> "Source":
        dtype, device = str(lab.anchor.dtype).removeprefix("torch."), str(lab.anchor.device)
        return cls(lab.name, lab.fingerprint(), dtype, device, lab.chat is not None)


def share(jobs: int) -> int:
    """Threads of each of ``jobs`` processes, so that together they do not ask for more than there are cores."""
    return max(1, (os.cpu_count() or 1) // jobs)


@lru_cache(1)
def loaded(source: Source) -> Lab:
    """A worker's own copy of the model, loaded once. Raises ValueError if it is not the model that was asked about."""
    lab = load(source.name, getattr(torch, source.dtype), source.device, chat=source.chat)
    if lab.fingerprint() != source.base:
        raise ValueError(
            f"{source.name} loads as another model than the one given (edited, perhaps); save it, or take jobs=1"
        )
    return lab


def trim() -> None:
    """Give freed memory back to the system where the C library can: what was needed before is not needed beside."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
