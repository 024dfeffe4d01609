"""Figures of one number against another show every point, kind and band that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kedit_lab import show
from kedit_lab.show import style


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"AKD": rng.uniform(0.1, 30, 40), "efficacy": rng.uniform(0.1, 1, 40)})
    return frame.assign(kind=["one", "two", "three", "four"] * 10)


def names(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_cloud_with_its_line(points):
    line = pd.DataFrame({"x": [0, 30], "value": [0.2, 0.9], "low": [0.1, 0.8], "high": [0.3, 1.0]})
    (axes,) = show.cloud(points, "AKD", "efficacy", "kind", line, title="Fig. 4").axes
    assert len(axes.collections) == 5, "a band, and four kinds"
    assert sum(len(kind.get_offsets()) for kind in axes.collections[1:]) == 40
    assert axes.lines[0].get_ydata().tolist() == [0.2, 0.9]
    assert names(axes) == ["one", "two", "three", "four"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("AKD", "efficacy", "linear")
    assert plt.get_fignums() == []


def test_a_cloud_beside_its_diagonal(points):
    (axes,) = show.cloud(points, "AKD", "efficacy", "kind", log=True, diagonal=True).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.lines[0].get_xdata() == pytest.approx(axes.lines[0].get_ydata())
    assert names(axes)[-1] == "equal"


def test_more_kinds_than_colours_are_refused(points):
    with pytest.raises(ValueError, match="AKD has 40 kinds; 8 colours"):
        show.cloud(points, "efficacy", "efficacy", "AKD")


def test_curves_are_means_with_a_band(points):
    frame = pd.DataFrame([{"N": n, "A": n * s, "batch": b} for n in (10, 100) for s in (1, 3) for b in "ab"])
    (axes,) = show.curves(frame, "N", "A", "batch").axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[20, 200]] * 2
    assert len(axes.collections) == 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "100"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert show.curves(frame, "N", "A", "batch", log_y=True).axes[0].get_yscale() == "log"
    numbered = points.assign(N=[1, 2] * 20)
    assert show.curves(numbered, "N", "efficacy", "kind", log=False).axes[0].get_ylim()[1] > 1


@pytest.mark.parametrize("log", [False, True])
def test_many_curves_have_lines_beside_each_other_for_bands(log):
    rows = [{"N": n, "A": 0.1 * s + 0.01 * n, "batch": b} for n in (1, 10) for s in (1, 3) for b in "abcd"]
    (axes,) = show.curves(pd.DataFrame(rows), "N", "A", "batch", log=log).axes
    drawn = [line.get_xdata() for line in axes.lines]
    assert len({tuple(x) for x in drawn}) == 4
    assert all(abs(x - [1, 10]).max() < 0.4 for x in drawn), "near what they stand for"
    reach = [[segment[:, 1].tolist() for segment in lines.get_segments()] for lines in axes.collections]
    assert reach == [[pytest.approx([0.11, 0.31]), pytest.approx([0.2, 0.4])]] * 4


def test_papers_are_grey_each_with_its_own_dashes():
    rows = [{"N": n, "A": n, "who": who} for n in (1, 10) for who in ("memit", "paper: one", "paper: two")]
    (axes,) = show.curves(pd.DataFrame(rows), "N", "A", "who").axes
    ours, one, two = axes.lines
    assert to_hex(one.get_color()) == to_hex(two.get_color()) == style.PAPER != to_hex(ours.get_color())
    assert len({line.get_linestyle() for line in axes.lines}) == 3


def test_small_multiples_have_an_axis_each():
    frame = pd.DataFrame({"after": [1, 2, 3], "perplexity": [2.0, 2.1, 2.6], "growth": [60.0, 90.0, 260.0]})
    columns = {"perplexity": "perplexity of text", "growth": "norm of the weight"}
    left, right = show.multiples(frame, "after", columns, "Health").axes
    assert [axes.get_title() for axes in (left, right)] == list(columns.values())
    assert left.lines[0].get_ydata().tolist() == [2.0, 2.1, 2.6]
    assert left.get_ylim()[0] == right.get_ylim()[0] == 0
    assert left.get_ylim()[1] < 5 < right.get_ylim()[1]


def test_many_curves_from_zero_on_a_log_axis():
    rows = pd.DataFrame([{"N": n, "A": n, "batch": b} for n in (0, 1, 10) for b in "abcd"])
    assert all(np.isfinite(line.get_xdata()).all() for line in show.curves(rows, "N", "A", "batch").axes[0].lines)
