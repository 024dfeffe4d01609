"""The live panels in a real browser: each is used once, with the keyboard, and leaves the model as it was."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from tests.browser.conftest import logged_in
from tests.browser.driver import errors, open_notebook, run_all, state, wait_for

pytestmark = pytest.mark.browser

PANELS = {
    "collision": "kl.CollisionPanel(lab, size=2)",
    "density": "kl.DensityPanel(lab, size=4)",
    "akd": "kl.AkdPanel(lab)",
    "alignment": "kl.AlignmentPanel(lab, size=4)",
    "beta": "kl.BetaPanel(lab)",
    "router": "kl.RouterPanel(lab)",
    "playground": "kl.Playground(lab)",
}
SETUP = "import kedit_lab as kl\n\nlab = kl.load()\nbase = lab.fingerprint()"
LAST = "lab.fingerprint() == base"
PATIENCE = 60_000  # milliseconds; seconds are enough where nothing else runs


class Notebook:
    """A page that shows every panel, each in its own cell, all of them run."""

    def __init__(self, page, server):
        self.page = page
        kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells = [new_code_cell(text) for text in (SETUP, *PANELS.values(), LAST)]
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), server.root / "panels.ipynb")
        open_notebook(page, "panels.ipynb")
        run_all(page, 180)

    def panel(self, name):
        """The output of a panel's cell."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(1 + list(PANELS).index(name))
        return cell.locator(".jp-OutputArea-output .widget-vbox").first

    def status(self, name):
        return self.panel(name).get_by_role("status")

    def says(self, name, text):
        """Wait until a panel's status holds a text (or matches a pattern)."""
        expect(self.status(name)).to_have_text(re.compile(text), timeout=PATIENCE)

    def press(self, name, label, *keys):
        """Keys on the slider called so."""
        slider = self.panel(name).locator(".widget-slider", has=self.page.get_by_text(label, exact=True))
        handle = slider.locator(".noUi-handle")
        handle.focus()
        for key in keys:
            handle.press(key)

    def choose(self, name, label, option):
        """An option of the list called so."""
        self.box(name, label).locator("select").select_option(label=option)

    def type(self, name, label, text):
        """A text, and Enter, into the field called so."""
        field = self.box(name, label).locator("input")
        field.fill(text)
        field.press("Enter")

    def box(self, name, label):
        return self.panel(name).locator(".widget-inline-hbox", has=self.page.get_by_text(label, exact=True))

    def click(self, name, label):
        """The button called so, pressed with the keyboard."""
        button = self.panel(name).get_by_role("button", name=label)
        expect(button).to_be_enabled(timeout=PATIENCE)
        button.focus()
        button.press("Enter")

    def figure(self, name):
        return self.panel(name).locator("img")

    def last_value(self):
        """Run the last cell again (it waits for whatever still works on the model) and read its value."""
        before = state(self.page)["counts"][-1]
        self.page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        wait_for(self.page, lambda: (state(self.page)["counts"][-1] or 0) > before, 60, "the last cell")
        return state(self.page)["outputs"][-1][0]["data"]["text/plain"]


@pytest.fixture(scope="module")
def notebook(browser, server):
    with logged_in(browser, server) as page:
        yield Notebook(page, server)


@pytest.fixture(autouse=True)
def no_errors(notebook):
    yield
    assert errors(notebook.page) == []


def test_every_panel_has_a_first_view(notebook):
    for name in PANELS:
        expect(notebook.figure(name)).to_have_count(1)
        expect(notebook.panel(name).locator("table tbody tr").first).to_be_attached()
        expect(notebook.panel(name).get_by_role("button", name="Cancel")).to_be_disabled()
    assert notebook.last_value() == "True"


def test_cancel_stops_and_a_new_choice_runs(notebook):
    notebook.says("collision", "2 of 2 facts share a key")
    notebook.press("collision", "facts", "End")
    notebook.says("collision", "editing 50 facts")
    notebook.click("collision", "Cancel")
    notebook.says("collision", "Cancelled. The model is unchanged")
    expect(notebook.figure("collision")).to_have_count(0)
    notebook.press("collision", "facts", "Home")
    notebook.says("collision", "1 of 1 fact held")
    expect(notebook.figure("collision")).to_have_count(1)


def test_a_cell_waits_for_the_panel_that_works(notebook):
    notebook.press("collision", "facts", "End")
    notebook.says("collision", "editing 50 facts")
    assert notebook.last_value() == "True", "the cell sees no half-made edit"
    notebook.says("collision", "of 50 facts held")


def test_density(notebook):
    notebook.press("density", "per subject", "ArrowRight", "ArrowRight")
    notebook.says("density", "memit, batch, 4 per subject: . of 4 facts held")
    notebook.choose("density", "method", "memit-merge")
    notebook.says("density", "memit-merge, batch, 4 per subject: 4 of 4 facts held")
    expect(notebook.panel("density").locator("table tbody tr")).to_have_count(4)


def test_akd(notebook):
    notebook.says("akd", "the keys coincide")
    notebook.choose("akd", "template", "relation first: “The name of the r of s is”")
    notebook.says("akd", "relation first: in layer 2 .* the keys differ")
    notebook.press("akd", "layer", "ArrowRight")
    notebook.says("akd", "in layer 3 ")


def test_alignment_is_live(notebook):
    notebook.says("alignment", "memit: after")
    notebook.choose("alignment", "method", "eamet")
    notebook.says("alignment", r"optimising the targets .* step \d+, sum of A\(i\)")
    notebook.says("alignment", r"eamet: after \d+ steps the sum of A\(i\) over 4 facts is")


def test_beta(notebook):
    notebook.says("beta", "fact 1 receives")
    notebook.box("beta", "fact").locator("option").nth(1).click()
    notebook.says("beta", "fact 2 receives")
    notebook.click("beta", "pseudo-inverse")
    notebook.says("beta", "pseudo-inverse: fact 2 receives 0.50 of its own residual, 0.50 from others of its subject")


def test_router(notebook):
    notebook.says("router", "^The edited model answers")
    notebook.type("router", "prompt", "The weather in the mountains is")
    notebook.says("router", "answers “The weather in the mountains is”")
    notebook.type("router", "prompt", " ")
    notebook.says("router", "This did not work: the prompt is empty")


def test_playground(notebook):
    dialogs = []
    notebook.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    undo = notebook.panel("playground").get_by_role("button", name="Undo")
    expect(undo).to_be_disabled()
    notebook.click("playground", "Edit")
    notebook.says("playground", "1 edit in effect.* the edited one “Greek”")
    expect(undo).to_be_enabled()
    assert notebook.last_value() == "True", "no other cell sees the edit"
    notebook.click("playground", "Undo")
    notebook.says("playground", "0 edits in effect")
    notebook.click("playground", "Redo")
    notebook.says("playground", "1 edit in effect.* the edited one “Greek”")
    notebook.type("playground", "subject", "<img src=x onerror=alert(1)>")
    notebook.says("playground", "<img src=x onerror=alert")
    expect(notebook.figure("playground")).to_have_count(1)
    notebook.click("playground", "Reset")
    notebook.says("playground", "0 edits in effect")
    assert dialogs == []
