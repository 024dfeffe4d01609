"""Who may use the model now: a cell of the notebook, or the work of one panel.

Clicks reach a kernel while a cell runs (JupyterLab sends widgets' messages to a thread of their own) and cells are run
while a panel works behind the page. An edit in the weights, or a hook in the model, must be seen by neither of the
others: cells wait for the panel that works, panels wait for the cell that runs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from IPython import get_ipython


class Gate:
    """One lock for all cells and panels of a kernel; without a notebook, and inside a cell, it is always open."""

    def __init__(self, shell: Any = None) -> None:
        self.lock = threading.RLock()
        self.shell = shell
        self.cells: list[Any] = []  # those that run: more than one where a cell runs another
        self.thread = 0
        self.cancel: Callable[[], None] | None = None
        if shell is not None:
            shell.events.register("pre_run_cell", self.enter)
            shell.events.register("post_run_cell", self.leave)
            if executing(shell):
                self.enter(None)  # this cell began before anybody listened

    @property
    def inside(self) -> bool:
        """Whether the caller may work at once: there is no notebook, or this is the thread of the cell that runs."""
        return self.shell is None or (bool(self.cells) and self.thread == threading.get_ident())

    def enter(self, info: Any) -> None:
        """A cell begins: wait for the panel that works; an interrupt stops that panel."""
        while True:
            try:
                self.lock.acquire()
                break
            except KeyboardInterrupt:
                if self.cancel is not None:
                    self.cancel()
        self.thread = threading.get_ident()
        self.cells.append(info)

    def leave(self, result: Any) -> None:
        """A cell has ended (an empty one never began)."""
        ended = [i for i, info in enumerate(self.cells) if info is result.info or info is None]
        if ended:
            self.cells.pop(ended[-1])
            self.lock.release()

    @contextmanager
    def turn(self, cancel: Callable[[], None], waiting: Callable[[], None]) -> Iterator[None]:
        """Work on the model inside the context; while somebody else does, ``waiting`` is called again and again."""
        while not self.lock.acquire(timeout=0.05):
            waiting()
        self.cancel, before = cancel, self.cancel
        try:
            yield
        finally:
            self.cancel = before
            self.lock.release()


def executing(shell: Any) -> bool:
    """Whether a cell runs (rather than a widget's callback); always so outside a kernel."""
    kernel = getattr(shell, "kernel", None)
    return kernel is None or kernel.get_parent().get("header", {}).get("msg_type") == "execute_request"


@cache
def gate_of(shell: Any) -> Gate:
    """The one gate of an IPython shell, or of this process if there is none."""
    return Gate(shell)


def gate() -> Gate:
    """The gate of this kernel."""
    return gate_of(get_ipython())
