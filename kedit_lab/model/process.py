"""What a process takes: its own copy of the model, its share of the cores and of chance, memory that it gives back."""

import ctypes
import gc
import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from numbers import Integral
from threading import Lock
from typing import Any

import torch
from joblib import Parallel, parallel_config

from kedit_lab.model.lab import Lab, load

TURN = Lock()  # of the one thread of this process that may be at the worker's model
LARGE = 2**26  # bytes of a d_k x d_k matrix from which it counts what lies freed beside it


@dataclass(frozen=True)
class Source:
    """Where a lab's model comes from, and a fingerprint of its weights."""

    name: str
    base: str
    dtype: str
    device: str
    chat: bool
    work: float | int | None = None
    places: tuple[tuple[str, Any], ...] = ()  # modules and devices, where accelerate has spread the model

    @classmethod
    def of(cls, lab: Lab) -> "Source":
        dtype, device = str(lab.anchor.dtype).removeprefix("torch."), str(lab.anchor.device)
        spread = tuple(getattr(lab.model, "hf_device_map", {}).items())
        return cls(lab.name, lab.fingerprint(), dtype, device, lab.chat is not None, lab.work, spread)


def share(jobs: Any) -> int:
    """Threads of each of ``jobs`` processes, so that together they do not ask for more than there are cores. Raises
    ValueError for what is no number of processes."""
    if not isinstance(jobs, Integral) or jobs < 1:
        raise ValueError(f"jobs is {jobs!r}; give 1, 2, ... processes")
    return max(1, (os.cpu_count() or 1) // jobs)


@lru_cache(1)
def loaded(source: Source) -> Lab:
    """A worker's own copy of the model, loaded once. Raises ValueError if it is not the model that was asked about."""
    dtype, places = getattr(torch, source.dtype), dict(source.places) or None
    lab = load(source.name, dtype, source.device, places, chat=source.chat, work=source.work)
    if lab.fingerprint() != source.base:
        raise ValueError(
            f"{source.name} loads as another model than the one given (edited, perhaps); save it, or take jobs=1"
        )
    return lab


@contextmanager
def worker(source: Source, threads: int) -> Iterator[Lab]:
    """A worker's own copy of the model, for its share of the cores. Threads of one worker take turns: they would load,
    hook and edit one model at once."""
    with TURN:
        torch.set_num_threads(threads)
        yield loaded(source)


def results(work: Iterable[Any], jobs: int, backend: str, ordered: bool = True) -> Iterator[Any]:
    """What ``delayed`` calls return, as they come, from ``jobs`` workers of a joblib backend.

    Backends that give lists only ("ray", "multiprocessing") get a few calls for each worker at a time.
    """
    with parallel_config(backend=backend, n_jobs=jobs):
        try:
            yield_as = "generator" if ordered else "generator_unordered"
            stream = Parallel(return_as=yield_as, pre_dispatch=2 * jobs)
        except ValueError:
            stream, rounds = None, Parallel()
    if stream is not None:
        yield from quietly(stream(work))
        return
    calls = iter(work)
    while some := list(islice(calls, 4 * jobs)):
        yield from rounds(some)


def quietly(found: Generator[Any, None, None]) -> Iterator[Any]:
    """The same, but whoever stops early is not warned that calls were made in vain."""
    try:
        for one in found:  # noqa: UP028 - "yield from" would close it before it can be done quietly
            yield one
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found.close()


def own_chance() -> AbstractContextManager[None]:
    """Whatever is drawn or seeded inside, every generator is behind it as it was before. Several devices are named:
    PyTorch warns where they are not."""
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    named = {"devices": range(count), "device_type": kind.type} if kind is not None and count > 1 else {}
    return torch.random.fork_rng(**named)


def spare(lab: Lab, collect: bool = False) -> None:
    """``release`` between the stages of an edit, where memory is short: passes are bounded, or C is large. ``collect``
    garbage first, for some 0.3 s, where passes have left much of it."""
    if lab.work is not None or 8 * lab.arch.d_k**2 >= LARGE:
        (trim if collect else release)()


def trim() -> None:
    """Give memory that nothing needs any more back to the system: what was needed before is not needed beside."""
    gc.collect()
    release()


def release() -> None:
    """Give freed memory back to the system where the C library can; it lies in pieces behind many small passes."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
