"""Text from data and models is shown, never run: every table and widget escapes it."""

import ast
from pathlib import Path

import pandas as pd
import pytest

from kedit_lab.facts import to_frame
from kedit_lab.facts.validation import Collector, FactList, Validation
from kedit_lab.measure.metrics import Report
from kedit_lab.show.panels.base import as_image
from kedit_lab.show.style import canvas
from kedit_lab.show.tables import before_after
from kedit_lab.types import Fact

PACKAGE = Path(__file__).parents[2] / "kedit_lab"
HOSTILE = ('<script>alert("1")</script>', "<img src=x onerror=alert(1)>", '"><b>', "</td></tr><h1>")


def report(text):
    rows = [{"fact": 0, "kind": "rewrite", "prompt": text, "answer": text, "exact": 1.0, "nll": 0.1, "nll_before": 2.0}]
    return Report(rows)


def dropped(text):
    pile = Collector()
    pile.add(1, [{"subject": text, "prompt": "They say", "target_new": text, "filled": False}])
    return Validation("file", "", 1, 1, 0, 0, 0, True, tuple(pile.dropped)).to_frame()


TABLES = {
    "a report": report,
    "a report's part": lambda text: report(text)[["prompt", "answer"]],
    "before and after": lambda text: before_after(report(text)),
    "texts before and after": lambda text: before_after(
        pd.DataFrame([{"prompt": text, "before": text, "wanted": text, "after": text}])
    ),
    "facts": lambda text: to_frame([Fact(text, "{} is", "so")]),
    "what was dropped": dropped,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("table", TABLES)
def test_tables(table, text):
    shown = TABLES[table](text)._repr_html_()
    assert text not in shown
    assert "&lt;" in shown
    assert "<script" not in shown
    assert "<img" not in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_pictures(text):
    with canvas() as (figure, _):
        shown = as_image(figure, text)
    assert shown.count("<") == shown.count(">") == 1
    assert shown.count('"') == 6  # three attributes, and no quote of the text ends one


def test_lists_of_facts_show_as_text():
    facts = FactList([Fact(HOSTILE[0], "{} is", "so")], Validation("file", "", 1, 1, 1, 0, 0, True))
    assert not hasattr(facts, "_repr_html_")
    assert HOSTILE[0] not in repr(facts)


def loopholes(source):
    """Where a source turns escaping off, or uses pandas' Styler, which does not escape unless told to."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and any(
            word.arg == "escape" and getattr(word.value, "value", True) is not True for word in node.keywords
        ):
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr == "style":
            yield node.lineno


def test_nothing_turns_escaping_off():
    found = {path.name: list(loopholes(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert list(loopholes("x.to_html(escape=False)\ny.style.format()\nz.to_html(escape=True)")) == [1, 2]
