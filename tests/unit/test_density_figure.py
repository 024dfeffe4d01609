"""The histogram of facts per subject counts every subject once and names the papers' means."""

import pandas as pd
import pytest

from kedit_lab import show
from kedit_lab.show import style

COUNTS = pd.DataFrame({"facts": [3, 3, 5, 5, 5, 9], "kind": ["a person"] * 3 + ["another thing"] * 3})


def test_every_subject_is_counted_once():
    (axes,) = show.facts_per_subject(COUNTS, title="Density").axes
    persons, others = axes.containers
    height = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in persons}
    assert height == pytest.approx({3: 2, 5: 1, 9: 0})
    top = {bar.get_x() + bar.get_width() / 2: bar.get_y() + bar.get_height() for bar in others}
    assert top == pytest.approx({3: 2, 5: 3, 9: 1}), "stacked on the first kind"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a person", "another thing"]
    assert not axes.lines


def test_the_papers_means_are_grey_lines_with_names():
    papers = pd.DataFrame({"label": ["CounterFact", "S2RKE"], "value": [1.1, 4.9]})
    (axes,) = show.facts_per_subject(COUNTS, papers).axes
    assert [line.get_xdata()[0] for line in axes.lines] == [1.1, 4.9]
    assert {line.get_color() for line in axes.lines} == {style.PAPER}
    names = [text.get_text() for text in axes.texts]
    assert names == ["CounterFact: 1.1", "S2RKE: 4.9"]
    assert len({text.get_position()[1] for text in axes.texts}) == 2, "names on lines of their own"
