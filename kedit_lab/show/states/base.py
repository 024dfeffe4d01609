"""What all panels' states share: a lab, a run that leaves it as it was, and safe points at which it can be stopped."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kedit_lab.model.lab import Lab


class Cancelled(Exception):
    """Someone asked to stop. Raised at a safe point; on the way out everything is put back, bit for bit."""


def nobody(*_: Any) -> None:
    """Nobody watches."""


@dataclass
class State:
    """The settings of a panel and what it does with them.

    ``run`` calls ``watch`` at its safe points, with something to show if there is something; ``watch`` may raise
    ``Cancelled``. A subclass names its settings as fields, refuses impossible ones in ``check``, and works in ``run``.
    """

    lab: Lab
    watch: Callable[..., None] = field(default=nobody, kw_only=True, repr=False, compare=False)

    def check(self) -> None:
        """Raise a ValueError for settings that cannot be run."""

    def run(self) -> Any:
        """Do the work; the weights are bit for bit what they were, also after an exception."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about what it runs")


def among(name: str, seen: Any, choices: Any) -> None:
    """Raise a ValueError unless a setting is one of its choices (a range is told by its ends)."""
    if isinstance(choices, range):
        if not isinstance(seen, int) or seen not in choices:
            raise ValueError(f"{name} is {seen!r}; give a number from {choices[0]} to {choices[-1]}")
    elif seen not in choices:
        raise ValueError(f"{name} is {seen!r}; choose one of {', '.join(map(repr, choices))}")
