"""What a person does in JupyterLab, as functions of a Playwright page: open, run all, move a slider, look."""

import time
from collections.abc import Callable
from typing import TypeVar

from playwright.sync_api import Page, expect

Found = TypeVar("Found")

# JupyterLab's own model of the open notebook (the server runs with expose_app_in_browser) says more than the
# prompts on the page do.
STATE = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    if (!panel?.sessionContext || !panel.content.model) return null;
    const session = panel.sessionContext;
    const code = Array.from(panel.content.model.cells).filter(cell => cell.type === 'code');
    return {
        path: panel.context.path,
        kernel: session.isReady ? session.session?.kernel?.status ?? 'none' : 'starting',
        counts: code.filter(cell => cell.sharedModel.getSource().trim()).map(cell => cell.executionCount),
        outputs: code.map(cell => cell.outputs.toJSON()),
    };
}"""
FIGURES = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea img[src^='data:image/png']"


def wait_for(page: Page, probe: Callable[[], Found], seconds: float, what: str) -> Found:
    """Ask `probe` until it answers with something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        page.wait_for_timeout(100)
    return found


def state(page: Page) -> dict:
    """The open notebook: its path, its kernel's status, and each code cell's execution count and outputs."""
    return page.evaluate(STATE) or {"path": None, "kernel": "none", "counts": [], "outputs": []}


def menu(page: Page, name: str, entry: str) -> None:
    page.locator("#jp-MainMenu").get_by_text(name, exact=True).click()
    page.locator(".lm-Menu").get_by_text(entry, exact=True).click()


def open_notebook(page: Page, name: str) -> None:
    """Open the notebook `name`, a path below the server's root, and wait until its kernel is idle."""
    page.goto(f"/lab/tree/{name}?reset")

    def is_open() -> bool:
        for dialog in page.locator(".jp-Dialog").all_inner_texts():
            raise RuntimeError(f"JupyterLab cannot open {name}: {dialog}")
        now = state(page)
        return now["path"] == name and now["kernel"] == "idle"

    wait_for(page, is_open, 90, f"{name} with an idle kernel")


def run_all(page: Page, seconds: float = 300) -> None:
    """Run > Run All Cells, and wait until no cell waits or runs any more (an error ends the run)."""
    menu(page, "Edit", "Clear Outputs of All Cells")
    wait_for(page, lambda: not any(state(page)["counts"]), 10, "cleared cells")
    menu(page, "Run", "Run All Cells")

    def is_done() -> bool:
        now = state(page)
        raised = any(output["output_type"] == "error" for output in outputs(page))
        return now["kernel"] == "idle" and (all(now["counts"]) or raised)

    wait_for(page, is_done, seconds, "the last cell")
    expect(page.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(0)


def outputs(page: Page) -> list[dict]:
    return [output for cell in state(page)["outputs"] for output in cell]


def errors(page: Page) -> list[str]:
    """What went wrong in the open notebook: exceptions, and whatever was written to stderr."""
    raised = [f"{o['ename']}: {o['evalue']}" for o in outputs(page) if o["output_type"] == "error"]
    return raised + [o["text"] for o in outputs(page) if o.get("name") == "stderr"]


def figures(page: Page) -> list[str]:
    """The data URLs of all PNG figures on the page, those inside widgets too."""
    return page.locator(FIGURES).evaluate_all("images => images.map(image => image.src)")


def wait_for_new_figure(page: Page, before: list[str], seconds: float = 60) -> list[str]:
    """Wait until the figures differ from `before` and the kernel has come to rest; returns the new ones.

    A slider that moves by several steps may draw a figure for each: at rest means the same figures and an
    idle kernel three times in a row.
    """
    seen = []

    def at_rest() -> bool:
        now = figures(page)
        idle = state(page)["kernel"] == "idle"
        seen.append(now if idle and len(now) == len(before) and now != before else None)
        return seen[-1] is not None and seen[-3:] == [seen[-1]] * 3

    wait_for(page, at_rest, seconds, "a figure that differs")
    return seen[-1]


def set_slider(page: Page, label: str, steps: int) -> str:
    """Move the slider called `label` by `steps` arrow keys (to the left if negative); returns its readout."""
    slider = page.locator(".widget-slider", has=page.get_by_text(label, exact=True))
    slider.scroll_into_view_if_needed()
    handle = slider.locator(".noUi-handle")
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
    return slider.locator(".widget-readout").inner_text()
