"""The Pareto front is what nothing beats, and its figure shows lines, front, names and the unedited model."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kedit_lab import show
from kedit_lab.show import style


@pytest.fixture
def settings():
    """Three settings on the front (the second twice), one beaten in both columns, one in a single one."""
    rows = [("a", 1.0, 0.90, 1.0), ("b", 1.0, 0.95, 0.8), ("b2", 0.2, 0.95, 0.8), ("c", 0.2, 0.98, 0.1),
            ("worse", 0.2, 0.92, 0.7), ("less", 1.0, 0.95, 0.5)]  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "density", "ability", "efficacy"]).set_index("name")


def test_the_front_is_what_nothing_beats(settings):
    assert list(settings.index[show.pareto(settings, "ability", "efficacy")]) == ["a", "b", "b2", "c"]
    one = show.pareto(settings.assign(efficacy=1.0), "ability", "efficacy")
    assert list(settings.index[one]) == ["c"]


def test_tradeoff_draws_a_line_per_value_and_the_front(settings):
    figure = show.tradeoff(settings, "ability", "efficacy", "density", {"all of it": "a"}, "Merging", unedited=0.99)
    axes, close = figure.axes
    full, fifth, front = axes.lines[:3]
    assert list(full.get_xdata()) == [0.90, 0.95, 0.95]
    assert list(fifth.get_ydata()) == [0.8, 0.1, 0.7]
    assert list(front.get_xdata()) == [0.90, 0.95, 0.95, 0.98]
    assert [to_hex(line.get_color()) for line in (full, fifth)] == [color.lower() for color in style.COLORS[:2]]
    (ringed,) = axes.collections
    assert len(ringed.get_offsets()) == 4
    assert {"all of it", "unedited"} <= {text.get_text() for text in axes.texts}
    assert [text.get_text() for text in close.get_legend().get_texts()] == ["1", "0.2", "Pareto front"]
    assert axes.lines[3].get_xdata()[0] == close.lines[3].get_xdata()[0] == 0.99
    assert len(close.collections[0].get_offsets()) == 4


def test_tradeoff_without_names_or_unedited_model(settings):
    for axes in show.tradeoff(settings, "ability", "efficacy", "density").axes:
        assert len(axes.lines) == 3
        assert not axes.texts


def test_rows_without_a_value_are_left_out(settings):
    holes = pd.DataFrame({"density": 0.2, "ability": [0.95, float("nan")], "efficacy": [float("nan"), 0.5]})
    for axes in show.tradeoff(pd.concat([settings, holes]), "ability", "efficacy", "density").axes:
        assert len(axes.collections[0].get_offsets()) == 4


def test_the_right_panel_is_as_large_as_the_front(settings):
    far = pd.DataFrame({"density": 0.2, "ability": 0.1, "efficacy": 0.2}, index=["far"])
    whole, close = show.tradeoff(pd.concat([settings, far]), "ability", "efficacy", "density").axes
    assert whole.get_xlim()[0] < 0.1
    assert 0.88 < close.get_xlim()[0] < 0.90 < 0.98 < close.get_xlim()[1] < 1
