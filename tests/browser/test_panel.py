"""The collision panel in a real browser: the notebook that holds it runs, and its controls edit the model again."""

import pytest

from tests.browser.driver import errors, figures, open_notebook, run_all, set_slider, wait_for_new_figure

pytestmark = pytest.mark.browser

NOTEBOOK = "02_key_collision.ipynb"


def changed(before: list[str], after: list[str]) -> int:
    """How many of the figures on the page are others than before."""
    return sum(old != new for old, new in zip(before, after, strict=True))


def test_the_panel_edits_again(page, server):
    open_notebook(page, NOTEBOOK)
    run_all(page, 500)
    assert errors(page) == []
    status = page.get_by_role("status").filter(has_text="efficacy")
    rows = page.locator(".widget-html table tbody tr")
    assert status.inner_text().startswith("one subject · memit: ")
    assert rows.count() == 10

    before = figures(page)
    assert set_slider(page, "facts", 2) == "12"
    after = wait_for_new_figure(page, before)
    assert changed(before, after) == 1, "the panel's figure, and no other, is drawn anew"
    assert "of 12 facts held" in status.inner_text()
    assert rows.count() == 12

    button = page.get_by_role("button", name="distinct subjects · memit")
    button.focus()
    button.press("Enter")
    assert changed(after, wait_for_new_figure(page, after)) == 1
    assert status.inner_text().startswith("distinct subjects · memit: ")
    assert errors(page) == []
