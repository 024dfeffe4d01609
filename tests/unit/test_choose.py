"""What to use when: shares of the best from measured rows, and advice that keeps to its thresholds."""

import pandas as pd
import pytest

import kedit_lab as kl
from kedit_lab.study.choose import family, scorecard
from kedit_lab.study.compare import CASES, METHODS

GOOD = {"efficacy": 1.0, "paraphrase": 1.0, "specificity": 1.0, "portability": 0.5, "fluency": 4.0, "ability": 0.8}


def row(method, case="same", seconds=2.0, megabytes=10.0, **changed):
    return GOOD | {"method": method, "case": case, "seconds": seconds, "megabytes": megabytes} | changed


@pytest.fixture
def rows():
    """A quick method that forgets, a slow one that is best, one between, and one that refuses."""
    return pd.DataFrame(
        [
            row("unedited", seconds=None, megabytes=None),
            row("memit", seconds=1.0, specificity=0.2),
            row("memit-merge", seconds=8.0, fluency=5.0, megabytes=5.0),
            row("rome", seconds=4.0, efficacy=0.92),
            {"method": "mend", "case": "same"},
        ]
    )


def test_the_scorecard_holds_shares_of_the_best(rows):
    card = scorecard(rows).loc["same"]
    assert list(card.index) == ["memit", "memit-merge", "rome", "mend"]
    assert card["speed"].tolist()[:3] == pytest.approx([1.0, 0.125, 0.25])
    assert card["memory"].tolist()[:3] == pytest.approx([0.5, 1.0, 0.5])
    assert card.loc["memit-merge", "fluency"] == 1.0, "more entropy than the unedited model's is no merit"
    assert card.loc["mend"].isna().all()


def test_advice_keeps_to_its_thresholds(rows):
    advice = kl.choose(rows).loc["same"]
    assert advice["suitable"] == "rome, memit-merge"
    assert advice["quickest"] == "rome"
    assert advice["strongest"] == "rome", "0.46 is within 0.05 of 0.5 and takes half as long"
    assert advice["tried"] == 3
    strict = kl.choose(rows, {"efficacy": 0.95, "specificity": 0.9}).loc["same"]
    assert strict["suitable"] == strict["strongest"] == "memit-merge"
    assert kl.choose(rows, {"specificity": 2.0}).loc["same", "quickest"] == "none"


def test_what_cannot_be_compared(rows):
    with pytest.raises(ValueError, match="case 'same' has no row 'unedited'"):
        scorecard(rows[rows["method"] != "unedited"])
    with pytest.raises(ValueError, match=r"unknown columns \['speeed'\]; the scorecard has efficacy"):
        kl.choose(rows, {"speeed": 0.1})


def test_the_committed_grid_has_advice_for_every_case():
    advice = kl.choose(kl.results("LAB-3"))
    assert list(advice.index) == list(CASES)
    assert advice.loc["same", "quickest"] == "memit-merge"
    assert set(map(family, METHODS[1:])) == {"located", "merged", "aligned", "trained", "other"}
