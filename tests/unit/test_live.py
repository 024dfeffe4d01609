"""The panels' figures: what they are given is what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kedit_lab.show import live

ANSWERS = pd.DataFrame({"continuation": ["Greek", "", "x" * 60], "probability": [0.5, 0.25, 0.1]})


@pytest.fixture(autouse=True)
def no_open_figures():
    """Figures are returned closed, so that a notebook shows them once."""
    yield
    assert plt.get_fignums() == []


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_density_shows_all_that_was_tried_and_rings_the_present():
    rows = [("memit", "batch", 1, 4, 0, 1.0, 0.9), ("memit", "batch", 3, 4, 0, 0.25, 0.8),
            ("memit-merge", "sequential", 3, 4, 0, 0.75, 0.7)]  # fmt: skip
    columns = ["method", "mode", "per_subject", "size", "seed", "efficacy", "specificity"]
    figure = live.density(np.eye(4), pd.DataFrame(rows, columns=columns), rows[1][:5])
    _, efficacy, specificity = figure.axes[:3]
    assert legend(specificity) == ["memit, batch", "memit-merge, sequential"]
    for axes, at in ((efficacy, 5), (specificity, 6)):
        *points, ring = [spots.get_offsets().tolist() for spots in axes.collections]
        assert points == [[[1, rows[0][at]], [3, rows[1][at]]], [[3, rows[2][at]]]]
        assert ring == [[3, rows[1][at]]]


def test_distances_mark_the_layer_and_the_present_batch():
    tried = pd.DataFrame([("subject first", "same", layer, 0.0) for layer in range(3)]
                         + [("relation first", "same", layer, 1.0 + layer) for layer in range(3)],
                         columns=["template", "subjects", "layer", "akd"])  # fmt: skip
    figure = live.distances(np.ones((2, 2)) - np.eye(2), tried, ("relation first", "same"), 1)
    first, second, dotted = figure.axes[1].lines
    assert first.get_linewidth() < second.get_linewidth()
    assert list(second.get_ydata()) == [1, 2, 3]
    assert list(dotted.get_xdata()) == [1, 1]
    assert [text.get_text() for text in figure.axes[1].texts] == [
        "subject first,\none subject",
        "relation first,\none subject",
    ]


def test_keys_that_coincide_have_a_scale_too():
    tried = pd.DataFrame({"template": ["a"], "subjects": ["same"], "layer": [0], "akd": [0.0]})
    figure = live.distances(np.zeros((2, 2)), tried, ("a", "same"), 0)
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_alignment_tells_pairs_of_one_subject_apart():
    key, residual = np.array([0.0, 1.0, 0.1]), np.array([0.2, 0.9, -0.1])
    figure = live.alignment(key, residual, np.array([False, True, False]), {"memit": (3, 4), "eamet": (1,)}, "eamet")
    left, right = figure.axes[:2]
    others, own = [spots.get_offsets().tolist() for spots in left.collections]
    assert others == [[0.0, 0.2], [0.1, -0.1]]
    assert own == [[1.0, 0.9]]
    assert legend(right) == ["memit", "eamet"]
    assert [list(line.get_ydata()) for line in right.lines] == [[3, 4], [1]]


def test_the_row_of_beta_is_framed_and_drawn():
    row = pd.DataFrame({"fact": [1, 2, 3], "β": [0.5, 0.4, -0.1], "who": ["its subject", "itself", "another subject"]})
    figure = live.beta_row(np.zeros((3, 3)), row, 1, "pseudo-inverse")
    left, right = figure.axes[:2]
    (frame,) = left.patches
    assert frame.get_bbox().bounds == (-0.5, 0.5, 3, 1)
    assert heights(right) == [0.4, 0.5, -0.1], "itself, its subject, another subject"
    assert legend(right) == ["itself", "its subject", "another subject"]
    assert right.get_title() == "What fact 2 receives"


def test_routes_fill_those_who_vote():
    nearest = pd.DataFrame({"prompt": ["p" * 90, "q"], "side": ["edited", "unrelated"], "weight": [7.0, 3.0],
                            "votes": ["yes", "no"]})  # fmt: skip
    (axes,) = live.routes(nearest, edited=True).axes
    assert [bar.get_width() for bar in axes.patches] == [7.0, 3.0]
    voter, other = (bar.get_facecolor() for bar in axes.patches)
    assert voter != other == (1, 1, 1, 1)
    assert "the edited model answers" in axes.get_title(loc="right")
    assert len(axes.get_yticklabels()[0].get_text()) == 56


def test_answers_stand_side_by_side():
    figure = live.answers(ANSWERS, ANSWERS.iloc[::-1], ("unedited", "with 1 edit"))
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.5, 0.25, 0.1]
    assert [bar.get_width() for bar in right.patches] == [0.1, 0.25, 0.5]
    assert [label.get_text() for label in left.get_yticklabels()] == ["Greek", "∅", f"{'x' * 25}…"]
    assert right.get_title(loc="left") == "with 1 edit"
