"""JupyterLab as a newcomer meets it: the first notebook opens and runs to its end."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.browser import conftest
from tests.browser.driver import (
    errors,
    figures,
    open_notebook,
    outputs,
    run_all,
    set_slider,
    state,
    wait_for_new_figure,
)

pytestmark = pytest.mark.browser

PANEL = """
import ipywidgets as widgets
import matplotlib.pyplot as plt

slider = widgets.IntSlider(3, 1, 10, description="facts")
shown = widgets.Output()


def draw(change=None):
    figure, axes = plt.subplots(figsize=(4, 2))
    axes.bar(range(slider.value), range(slider.value))
    with shown:
        shown.clear_output(wait=True)
        display(figure)
    plt.close(figure)


slider.observe(draw, "value")
draw()
widgets.VBox([slider, shown])
"""


def write_notebook(server, name, *sources):
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[new_code_cell(s) for s in sources], metadata={"kernelspec": kernelspec})
    nbformat.write(notebook, server.root / name)


def test_the_first_notebook_runs(page, server):
    assert server.get("/api/status")["started"]
    open_notebook(page, "00_start_here.ipynb")
    run_all(page)
    assert errors(page) == []
    assert outputs(page)


def test_browser_helpers(page, server):
    write_notebook(server, "scratch.ipynb", "import time; time.sleep(1)\n1 + 1", PANEL, "slider.value")
    open_notebook(page, "scratch.ipynb")
    run_all(page, 60)
    assert errors(page) == []
    assert state(page)["counts"] == [1, 2, 3]
    assert [output["data"]["text/plain"] for output in outputs(page)[::2]] == ["2", "3"]
    before = figures(page)
    assert len(before) == 1
    assert set_slider(page, "facts", 2) == "5"
    after = wait_for_new_figure(page, before)
    assert set_slider(page, "facts", -2) == "3"
    assert wait_for_new_figure(page, after) == before


def test_a_price_is_no_formula(page, server):
    """MathJax is there, and leaves tables alone."""
    table = "import pandas as pd\nimport kedit_lab\npd.DataFrame({'a': ['$5 and $6 more', r'$\\href{http://x}{y}$']})"
    formula = "from IPython.display import Markdown\nMarkdown('a formula: $x^2$')"
    write_notebook(server, "prices.ipynb", table, formula)
    open_notebook(page, "prices.ipynb")
    run_all(page, 90)
    page.locator("mjx-container").first.wait_for(state="attached")
    assert page.locator("mjx-container").count() == 1
    assert "$5 and $6 more" in page.locator(".jp-OutputArea table").inner_text()


def test_an_error_is_seen(page, server):
    write_notebook(server, "error.ipynb", "1 + 1", "1 / 0", "2 + 2")
    open_notebook(page, "error.ipynb")
    run_all(page, 60)
    assert errors(page) == ["ZeroDivisionError: division by zero"]
    assert state(page)["counts"] == [1, 2, None]


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_fails_where_it_must(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(conftest, "BROWSERS", ("no-such-browser",))
    with pytest.raises(outcome, match="no browser: none of no-such-browser"):
        conftest.browser_path()
