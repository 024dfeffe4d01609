"""Second moments that end badly, in a process of their own where it must be one."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch

from kedit_lab.extract import moments, running
from kedit_lab.model.lab import Lab
from tests.pico.dying import POINTS, at, kill, memory_again, no_memory, small_lab, wide_lab
from tests.pico.tiny import TEXTS

DOCUMENTS = [*TEXTS, *(text[::-1] for text in TEXTS)]
POINTS.update(piece=(moments, "piece"), checkpoint=(running, "save_file"))


def moment(lab: Lab, folder: Path, **more: Any) -> torch.Tensor:
    """C over four pieces of two documents, written after each."""
    with mock.patch.multiple(running, PIECE=2, SAVE_EVERY=0.0):
        return moments.second_moment(lab, 1, DOCUMENTS, folder, **more)


def tear(_tensors: Any, path: Path, _told: Any) -> None:
    """Half a file, and kill -9."""
    path.write_bytes(b"half of it")
    kill()


def moment_killed(folder: Path, point: str, call: int) -> None:
    """Killed before a call of a point; at a checkpoint, in the middle of writing it."""
    with at(point, call, tear if point == "checkpoint" else kill):
        moment(small_lab(), folder)


def moment_starved(folder: Path) -> tuple[str, bool]:
    """A sum that runs out of memory at its second piece, and goes on: (error, whether it ends as one that did not)."""
    lab, told = wide_lab(), "none"
    try:
        with at("piece", 2, no_memory):
            moment(lab, folder / "starved")
    except (MemoryError, RuntimeError) as error:
        told = str(error)
    memory_again()
    return told, torch.equal(moment(lab, folder / "starved"), moment(lab, folder / "whole"))
