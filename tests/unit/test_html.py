"""Text from data and models is shown, never run: every table and widget escapes it."""

import ast
import re
from pathlib import Path

import pandas as pd
import pytest

from kedit_lab.facts import to_frame
from kedit_lab.facts.validation import Collector, FactList, Validation
from kedit_lab.measure.metrics import Report
from kedit_lab.show.panels.base import as_image, as_table
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
    "names of rows and columns": lambda text: pd.DataFrame({text: [1.0]}, index=pd.Index([text], name=text)),
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("table", TABLES)
def test_tables(table, text):
    shown = TABLES[table](text)._repr_html_()
    assert text not in shown
    assert "&lt;" in shown
    assert "<script" not in shown
    assert "<img" not in shown


def test_tables_are_kept_from_mathematics():
    """A browser test looks at what JupyterLab makes of it."""
    shown = [report("$5 and $6")._repr_html_(), as_table(pd.DataFrame({"a": ["$5 and $6"]}))]
    assert all("tex2jax_ignore" in table for table in shown)


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_of_panels(text):
    plain = as_table(pd.DataFrame({"a": ["a"]}), "a")
    shown = as_table(pd.DataFrame({text: [text]}), text)
    assert re.findall("<[^>]*>", shown) == re.findall("<[^>]*>", plain)  # the same tags, none of them the text's
    assert shown.count("&lt;") == 3 * text.count("<")


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


TAG, NOT_TEXT = re.compile(r"<[a-zA-Z/!]"), {"style", "data"}  # a style of ours, a picture in base 64
WAYS_OUT = ("escape", "description_allow_html", "unsafe_allow_html")


def loopholes(source):
    """Where a source turns escaping off, uses the Styler of pandas, which does not escape unless told to, or writes a
    tag with anything in it that is not escaped."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and any(
            word.arg in WAYS_OUT and getattr(word.value, "value", None) is not (word.arg == "escape")
            for word in node.keywords
        ):
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr == "style":
            yield node.lineno
        if isinstance(node, ast.JoinedStr) and any(
            isinstance(part, ast.Constant) and TAG.search(str(part.value)) for part in node.values
        ):
            filled = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
            yield from (node.lineno for text in filled if text not in NOT_TEXT and not text.startswith("html.escape("))


def test_nothing_turns_escaping_off():
    found = {path.name: list(loopholes(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x.to_html(escape=False)\ny.style.format()\nz.to_html(escape=True)", [1, 2]),
        ("Button(description_allow_html=True)\nButton(description_allow_html=False)", [1]),
        ("f'<b>{text}</b>'\nf'<b>{html.escape(text)}</b>'\nf'{text} < 3'\nf'<b>{html.escape(a)} {b}</b>'", [1, 4]),
    ],
)
def test_loopholes_are_seen(source, lines):
    assert sorted(loopholes(source)) == lines
