"""What the papers say of every method, on the lab model with the shipped recipes: means over five seeds, ten facts."""

import pytest

from kedit_lab.study.collision import draw, trial

SEEDS = range(5)


@pytest.fixture(scope="module")
def efficacy(lab):
    """efficacy(method, subjects): mean over the seeds of ten facts, computed once."""
    known = {}

    def get(method, subjects):
        if (method, subjects) not in known:
            found = [trial(lab, draw(subjects, 10, s), method, kinds=("rewrite",))[1].summary() for s in SEEDS]
            known[method, subjects] = sum(row["efficacy"] for row in found) / len(found)
        return known[method, subjects]

    return get


@pytest.mark.parametrize("method", ["memit", "pmet", "alphaedit", "eamet", "emmet"])
def test_distinct_subjects(efficacy, method):
    assert efficacy(method, "distinct") >= 0.90


@pytest.mark.parametrize("method", ["memit", "pmet", "alphaedit"])
def test_one_subject_collides(efficacy, method):
    assert efficacy(method, "same") <= 0.50


def test_merging_mends_it(efficacy):
    assert efficacy("memit-merge", "same") >= 0.90
    assert efficacy("pmet-merge", "same") >= efficacy("pmet", "same") + 0.15


def test_fine_tuning_does_not_mind(efficacy):
    """FT-L has no keys to collide."""
    assert abs(efficacy("ft-l", "distinct") - efficacy("ft-l", "same")) <= 0.1
