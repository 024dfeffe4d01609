"""What every live panel is: controls set a state, the state runs, a figure and a table show what came out.

Inside a cell and without a notebook all of that happens at once. When a reader moves a control, the work is done in a
thread behind the page, so that the kernel still hears the button that cancels it; see ``gate`` for who waits for whom.
"""

import base64
import html
import io
import threading
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from kedit_lab.show.panels.gate import gate
from kedit_lab.show.states.base import Cancelled, State
from kedit_lab.show.style import COLORS

FIGURE_HEIGHT = "400px"
TABLE_HEIGHT = "300px"
EDGES = {"ready": COLORS[2], "busy": COLORS[4], "trouble": COLORS[1]}


@dataclass
class Job:
    """One run: a copy of the state as it was set, what it does in words, whether to stop, and whether it has ended."""

    state: State
    told: str
    stopped: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """A safe point."""
        if self.stopped.is_set():
            raise Cancelled


class Panel:
    """The base of all panels. ``controls`` are widgets by the name of the setting that their value is.

    As the value of a cell it is a set of widgets. ``to_figure()`` and ``to_frame()`` give the same without any, at
    once. What was found is ``panel.result``; ``cancel()`` stops a run at its next safe point, ``wait()`` waits for it.
    A subclass says ``doing``, ``sentence``, ``settings``, ``to_figure`` and ``to_frame``, and may add to ``read``,
    ``show`` and ``glimpse``.
    """

    figure_height = FIGURE_HEIGHT
    table_height = TABLE_HEIGHT

    def __init__(self, state: State, controls: Mapping[str, widgets.Widget], rows: Sequence[Sequence[Any]]) -> None:
        state.check()
        self.state = state
        self.controls = dict(controls)
        self.latest: Any = None
        self.job: Job | None = None
        self.lock = threading.RLock()  # of what is shown: a run that was overtaken shows nothing
        self.status = widgets.HTML(layout=widgets.Layout(min_height="56px", flex="1 1 auto"))
        self.stop = widgets.Button(
            description="Cancel", icon="stop", disabled=True, tooltip="Stop at the next safe point; nothing is changed",
            layout=widgets.Layout(width="110px", height="32px", flex="0 0 auto"),
        )  # fmt: skip
        self.stop.on_click(lambda _: self.cancel())
        self.picture = widgets.HTML(layout=widgets.Layout(height=self.figure_height, overflow="auto"))
        self.table = widgets.HTML(layout=widgets.Layout(height=self.table_height, overflow="auto"))
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        top = [row[0] if len(row) == 1 else widgets.HBox(list(row), layout=wrap) for row in rows]
        self.view = widgets.VBox([*top, widgets.HBox([self.stop, self.status]), self.picture, self.table])
        gate()  # from now on cells and panels take turns
        for control in self.controls.values():
            control.observe(self.update, "value")

    def doing(self) -> str:
        """What is going on while the state runs, without a full stop."""
        return "working"

    def sentence(self, result: Any) -> str:
        """The result in words."""
        raise NotImplementedError(f"{type(self).__name__} has no words for its result")

    def settings(self) -> str:
        """The present settings in few words."""
        return ", ".join(f"{name}={getattr(self.state, name)!r}" for name in self.controls)

    def to_figure(self) -> Figure:
        """What the panel shows, as a figure."""
        raise NotImplementedError(f"{type(self).__name__} draws no figure")

    def to_frame(self) -> pd.DataFrame:
        """What the panel shows, as a table."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables under the figure by caption: ``to_frame()`` alone, unless a panel shows more."""
        return {"": self.to_frame()}

    @property
    def result(self) -> Any:
        """What came out for the present settings; computed if nothing was yet."""
        if self.latest is None:
            with gate().turn(self.cancel, lambda: None):
                self.latest = self.state.run()
        return self.latest

    def read(self) -> None:
        """Put the controls' values into the state."""
        for name, control in self.controls.items():
            setattr(self.state, name, control.value)

    def update(self, _change: Any = None) -> None:
        """Read the controls, run, show; an earlier run that has not ended is cancelled."""
        with self.lock:
            self.cancel()
            self.read()
            job = self.job = Job(replace(self.state), self.doing())
            job.state.watch = partial(self.watch, job)
            self.latest = None
            self.say(f"{job.told} …", "busy")
            self.stop.disabled = False
        if gate().inside:
            self.work(job)
        else:
            threading.Thread(target=copy_context().run, args=(self.work, job), daemon=True).start()

    def work(self, job: Job) -> None:
        """Run a job when it is its turn; whatever goes wrong is shown as a sentence."""
        try:
            with gate().turn(job.stopped.set, lambda: self.queue(job)):
                self.watch(job)
                self.end(job, job.state.run())
        except Cancelled:
            self.fail(job, "Cancelled. The model is unchanged; choose other settings or the same again.")
        except KeyboardInterrupt:
            self.fail(job, "Interrupted. The model is unchanged.")
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).rstrip(".")
            self.fail(job, f"This did not work: {reason}. The model is unchanged; choose other settings.")
        finally:
            with self.lock:
                self.stop.disabled = self.job is job or self.stop.disabled
            job.done.set()

    def queue(self, job: Job) -> None:
        """Somebody else uses the model: say so."""
        job.check()
        with self.lock:
            if self.job is job:
                self.say(f"{job.told}: waits for a running cell or panel …", "busy")

    def watch(self, job: Job, *seen: Any) -> None:
        """A safe point of a run: stop if asked to, else show what there is to show."""
        job.check()
        with self.lock:
            if self.job is job:
                if seen:
                    self.glimpse(*seen)
                else:
                    self.say(f"{job.told} …", "busy")

    def glimpse(self, seen: Any) -> None:
        """Show something that is not finished."""

    def end(self, job: Job, result: Any) -> None:
        """Show what came out, unless another run was begun since."""
        with self.lock:
            if self.job is job:
                self.latest = result
                self.show(result)

    def fail(self, job: Job, text: str) -> None:
        """Show a sentence instead of a result."""
        with self.lock:
            if self.job is job:
                self.latest = None
                self.picture.value = self.table.value = ""
                self.say(text, "trouble")

    def cancel(self) -> None:
        """Ask the present run to stop at its next safe point."""
        if self.job is not None:
            self.job.stopped.set()

    def wait(self, seconds: float | int | None = None) -> bool:
        """Wait until the present run has ended; False if it has not after so many seconds."""
        return self.job is None or self.job.done.wait(seconds)

    def close(self) -> None:
        """Stop what runs and take the widgets off the page."""
        self.cancel()
        self.wait()
        self.view.close()

    def show(self, result: Any) -> None:
        """Put a result into the widgets."""
        figure, told = self.to_figure(), self.sentence(result)
        self.table.value = "".join(as_table(frame, caption) for caption, frame in self.tables().items())
        self.say(told)
        self.picture.value = as_image(figure, told)

    def say(self, text: str, kind: str = "ready") -> None:
        """Show a sentence above the figure; screen readers announce it."""
        style = f"line-height: 1.4; padding-left: 8px; border-left: 4px solid {EDGES[kind]}"
        self.status.value = f'<div role="status" aria-live="polite" style="{style}">{html.escape(text)}</div>'

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings()}); run this cell to use it"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widgets for a notebook, and a line of text for everything else."""
        if self.latest is None:
            self.update()
        else:
            self.show(self.latest)
        return self.view._repr_mimebundle_(**options) | {"text/plain": repr(self)}


def counted(size: int, thing: str = "fact") -> str:
    """ "1 fact", "10 facts"."""
    return f"{size} {thing}" if size == 1 else f"{size} {thing}s"


def plain(number: float) -> str:
    """Two decimals, and no negative zero."""
    return f"{round(float(number), 2) + 0.0:.2f}"


def choice(value: Any, options: Any, name: str, help: str, width: str = "300px") -> widgets.Dropdown:
    """One of a few options."""
    return widgets.Dropdown(
        value=value, options=options, description=name, tooltip=help, layout=widgets.Layout(width=width)
    )


def typed(value: str, name: str, help: str, width: str = "520px") -> widgets.Text:
    """A text that counts when Enter is pressed or the field is left."""
    return widgets.Text(
        value, description=name, placeholder=help, tooltip=help, continuous_update=False,
        layout=widgets.Layout(width=width),
    )  # fmt: skip


def slider(value: int, choices: range, name: str, help: str, width: str = "340px") -> widgets.IntSlider:
    """A slider that reports where it is let go."""
    return widgets.IntSlider(
        value, choices[0], choices[-1], description=name, continuous_update=False, tooltip=help,
        layout=widgets.Layout(width=width),
    )  # fmt: skip


def seed_box(value: int) -> widgets.BoundedIntText:
    """A number that draws other facts."""
    return widgets.BoundedIntText(
        value, 0, 999, description="seed", layout=widgets.Layout(width="180px"),
        tooltip="Another seed draws other subjects, relations and objects",
    )  # fmt: skip


def as_table(frame: pd.DataFrame, caption: str = "") -> str:
    """A table as HTML, escaped, with a heading if there is something to say."""
    head = f"<h4 style='margin: 4px 0'>{html.escape(caption)}</h4>" if caption else ""
    return head + frame.to_html(index=False, border=0, escape=True, float_format=plain, na_rep="")


def as_image(figure: Figure, text: str) -> str:
    """A figure as an HTML image with an alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" style="max-width: 100%; height: auto">'
