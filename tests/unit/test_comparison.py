"""Many methods side by side: the map has a panel per case, the front holds what nothing beats."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from kedit_lab import show
from kedit_lab.show.comparison import front


@pytest.fixture
def card():
    index = pd.MultiIndex.from_product([["same", "massive"], ["memit", "rome", "mend"]], names=["case", "method"])
    frame = pd.DataFrame(np.linspace(0, 1, 12).reshape(6, 2), index=index, columns=["efficacy", "speed"])
    frame.loc[("massive", "mend")] = np.nan
    return frame


def test_the_map_has_a_panel_per_case_and_marks_refusals(card):
    figure = show.method_map(card, "All")
    same, massive, bar = figure.axes
    assert [axes.get_title() for axes in (same, massive)] == ["same", "massive"]
    assert [tick.get_text() for tick in same.get_yticklabels()] == ["memit", "rome", "mend"]
    assert [tick.get_text() for tick in massive.get_xticklabels()] == ["efficacy", "speed"]
    assert same.images[0].get_array().tolist() == card.loc["same"].to_numpy().tolist()
    crosses = [
        sum(len(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)) for axes in (same, massive)
    ]
    assert crosses == [0, 2]
    assert "refused" in bar.get_ylabel()


def test_the_front_holds_what_nothing_beats_in_both():
    points = pd.DataFrame(
        {"seconds": [1.0, 2.0, 2.0, 3.0, 9.0], "score": [0.5, 0.4, 0.9, 0.9, 1.0]}, index=list("abcde")
    )
    assert list(front(points, "seconds", "score").index) == ["a", "c", "e"]


def test_the_price_names_every_point_in_one_of_its_panels():
    names, seconds, score = ["memit", "rome", "mend", "kn"], [1.0, 1.5, 3.0, 30.0], [0.9, 0.8, 0.9, 0.1]
    points = pd.DataFrame({"seconds": seconds, "score": score, "kind": ["a", "b", "b", "b"]}, index=names)
    whole, close = show.price(points, "seconds", "score", "kind", "t").axes
    assert [text.get_text() for text in whole.texts] == ["mend", "kn"], "worse, or more than twice as dear"
    assert [text.get_text() for text in close.texts] == ["memit", "rome"]
    assert [text.get_text() for text in whole.get_legend().get_texts()] == ["front", "a", "b"]
    assert (whole.get_xscale(), close.get_xscale()) == ("log", "linear")
    assert [sum(len(c.get_offsets()) for c in axes.collections) for axes in (whole, close)] == [4, 4]
    assert close.get_xlim()[0] < 1 < 1.5 < close.get_xlim()[1] < 3
    (only,) = show.price(points.assign(seconds=[1.0, 9.0, 20.0, 30.0], score=[0.2, 0.1, 0.9, 0.1]), "seconds", "score",
                         "kind").axes  # fmt: skip
    assert [text.get_text() for text in only.texts] == names, "nobody is both good and cheap"
    alone = show.price(points[:1], "seconds", "score", "kind").axes
    assert [text.get_text() for axes in alone for text in axes.texts] == ["memit"]
