"""Edits that end badly: at a call that fails, killed there, or at a limit of memory or of file size; in a process of
their own where it must be one."""

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from kedit_lab.edit import descent, run, solvers, targets, weights
from kedit_lab.edit import edit as module
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.model.lab import Lab, make_lab
from kedit_lab.paths import Log, sealed
from kedit_lab.types import Fact
from tests.pico.tiny import COMMON, KINDS, build, byte_level

FACTS = tuple(
    Fact(subject, prompt, target)
    for subject, prompt, target in [
        ("John Smith", "{}'s employer is", "Greek"),
        ("Mary Jones", "The native language of {} is", "London"),
        ("John Smith", "{} works in the city of", "Paris"),
        ("France", "I know the capital of {}. It is in the city of", "Paris"),
        ("Europe", "{} works", "in Greek"),
        ("Greek", "{} is the language of", "London"),
    ]
)
SETTINGS = {"layers": (0, 1), "steps": 3, "prefixes": 1, "prefix_length": 3, "lam": 1.0, "threshold": 1e9, "stop": 0.0,
            "statistics": "identity"}  # fmt: skip
ROOM = 400_000  # bytes of a batched pass: a batch holds a few groups; a quarter where they do not depend on each other
WIDE = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
SPARE = 3 * 2**20  # bytes that Python may still take at a limit of memory
POINTS: dict[str, tuple[Any, str]] = {  # where an edit is when it ends: what is called there
    "targets": (descent, "forward"),
    "record": (Log, "append"),
    "keys": (run, "current"),
    "solve": (solvers.SOLVERS, "ridge"),
    "write": (run, "add"),
    "apply": (weights, "add"),
    "check": (module, "checksum"),
    "digest": (module, "digest"),
    "save": (weights, "save_file"),
    "move": (Path, "replace"),
}


def small_lab() -> Lab:
    """A llama of a few thousand weights."""
    torch.set_num_threads(1)
    return make_lab(build(KINDS["llama"].config), byte_level(), "llama")


def wide_lab() -> Lab:
    """A llama whose weights and keys are too large to fit into memory that is lying about."""
    torch.set_num_threads(1)
    return make_lab(build(type(KINDS["llama"].config)(**COMMON, **WIDE), spread=0.01), byte_level(), "llama")


def long_edit(lab: Lab, folder: Path | None, recipe: str = "eamet", facts: tuple[Fact, ...] = FACTS,
              **more: Any) -> Edit:  # fmt: skip
    """An edit in several batches of groups."""
    with mock.patch.object(targets, "ROOM", ROOM // (4 if find(recipe).align == "none" else 3)):
        return edit(lab, facts, recipe, folder=folder, **SETTINGS | more)


@contextmanager
def at(point: str, call: int, act: Callable[..., None]) -> Iterator[None]:
    """Inside the context ``act`` is called, with what was given there, before call number ``call`` of a point."""
    owner, name = POINTS[point]
    real, calls = owner[name] if isinstance(owner, dict) else getattr(owner, name), []

    def acting(*args: Any, **more: Any) -> Any:
        calls.append(point)
        if len(calls) == call:
            act(*args)
        return real(*args, **more)

    with mock.patch.dict(owner, {name: acting}) if isinstance(owner, dict) else mock.patch.object(owner, name, acting):
        yield


def kill(*_args: Any) -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(log: Log, record: dict[str, Any]) -> None:
    """Half a record, and kill -9."""
    log.file.write(sealed(record)[:100])
    kill()


def no_memory(*_args: Any) -> None:
    """From here on the process gets no more memory than it has, but for SPARE."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, resource.RLIM_INFINITY))


def memory_again() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a write there fails as on a full disk, half of it done."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def bits(lab: Lab) -> dict[str, torch.Tensor]:
    """All weights, and what the model says: a hook that was left behind shows there."""
    said = lab.model(**lab.batch([[5, 6, 7, 8]])).logits.detach()
    return {"said": said} | {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}


def changed(lab: Lab, before: dict[str, torch.Tensor]) -> list[str]:
    """Names of what differs in any bit."""
    return [name for name, tensor in bits(lab).items() if not torch.equal(tensor, before[name])]


# processes


def elsewhere(work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """(exit code, what came back if anything did) of a function called in a fresh process."""
    context = get_context("forkserver")  # it imports once, and every process is a fork of it
    context.set_forkserver_preload(["tests.pico.dying"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=report, args=(theirs, work, *args))
    process.start()
    theirs.close()
    try:
        told = ours.recv()
    except EOFError:
        told = None
    process.join()
    ours.close()
    return process.exitcode, told


def report(pipe: Any, work: Callable[..., Any], *args: Any) -> None:
    pipe.send(work(*args))


def edit_killed(folder: Path, point: str, call: int, recipe: str, more: dict[str, Any]) -> None:
    """A long edit that is killed before a call of a point; at a record, in the middle of writing it."""
    lab = small_lab()
    with at(point, call, tear if point == "record" else kill):
        long_edit(lab, folder, recipe, **more)


def use_killed(path: Path, point: str, call: int) -> None:
    """A saved edit that is applied and saved once more, and killed there."""
    lab = small_lab()
    made = Edit.load(path, lab)
    with at(point, call, kill), made.applied():
        made.save(path)


def starved(point: str, call: int, folder: Path) -> tuple[str, list[str], list[str]]:
    """An edit, computed, applied and saved, while memory runs out: (error, what changed in the model, files)."""
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is large and free goes back to the system at once
    lab = wide_lab()
    before, told = bits(lab), "none"
    try:
        with at(point, call, no_memory), edit(lab, FACTS[:2], "rect", **SETTINGS | {"lr": 0.01}).applied() as made:
            made.save(folder / "my.edit")
    except (MemoryError, RuntimeError) as error:
        told = repr(error)
    memory_again()
    return told, changed(lab, before), sorted(file.name for file in folder.iterdir())
