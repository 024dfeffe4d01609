"""Claims: verdicts come from conditions. Answers: right ones are told from wrong ones and are nowhere to be read."""

import json

import numpy as np
import pytest
import torch

from kedit_lab.study import course
from kedit_lab.study.course import check, claim, experiments, seal, spread


def test_every_experiment_has_a_claim():
    table = experiments()
    assert table.index.is_unique
    assert len(table) == 61
    assert table["claim"].str.endswith(".").all()
    assert set(table["paper"]) == {"memit-merge", "s2rke", "eamet", "mm4ke", "seqmmr"}


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [({"a": True}, "holds"), ({"a": True, "b": False}, "partly"), ({"a": False, "b": False}, "does not hold")],
)
def test_the_verdict_follows_from_the_parts(parts, verdict):
    made = claim("MM-1", parts, {"efficacy": [0.1, 0.3]}, "" if verdict == "holds" else "reasons")
    assert made.verdict == verdict
    text = repr(made)
    assert f"verdict: {verdict}" in text
    assert text.endswith("measured: efficacy 0.2 (0.1 to 0.3, 2 seeds)")
    for part, held in parts.items():
        assert f"{held!s:5} {part}" in text


def test_a_reason_is_told_where_the_verdict_needs_one():
    """Another draw may turn a verdict around: that is an answer, and no error."""
    assert "verdict: partly (of the draw)" in repr(claim("MM-1", {"a": True, "b": False}, {"n": 1}, "of the draw"))
    assert "of the draw" not in repr(claim("MM-1", {"a": True, "b": True}, {"n": 1}, "of the draw"))
    assert "verdict: does not hold\n" in repr(claim("MM-1", {"a": False}, {"n": 1}))


@pytest.mark.parametrize(
    ("values", "told"), [(0.31, "0.31"), ([0.1, -0.1 - 1e-17], "0 (-0.1 to 0.1, 2 seeds)"), (0.1 + 0.2 - 0.3, "0")]
)
def test_differences_that_cancel_are_zero(values, told):
    assert spread(values) == told


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("XX-1", {"a": True}, {"n": 1}, ""), "unknown experiment 'XX-1'"),
        (("MM-1", {}, {"n": 1}, ""), "0 conditions and 1 numbers"),
    ],
)
def test_an_incomplete_claim_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        claim(*asked)


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "data_dir", lambda: tmp_path)
    return tmp_path / "answers.json"


@pytest.mark.parametrize(
    ("answer", "step", "right", "wrong"),
    [
        (12, 1, [12, 12.0, 13], [14, 9]),
        (0.31, 0.05, [0.31, 0.34, 0.28], [0.45, 0.1]),
        ("MEMIT-Merge", 1, ["memit-merge", " memit-merge "], ["memit"]),
        (0.31, 0.05, [np.float32(0.31), torch.tensor(0.31), np.array([0.31])], [torch.tensor(0.5)]),
        (True, 1, [True, np.True_], [False]),
        (
            {"rome", "memit"},
            1,
            [["memit", "ROME"], ("rome", "memit"), ["rome", "rome", "memit"]],
            [["memit"], ["memit", "pmet"]],
        ),
    ],
)
def test_answers_are_told_apart(sealed, answer, step, right, wrong):
    seal("99.1", answer, step)
    assert all(check("99.1", given) == "99.1: right" for given in right)
    assert all(check("99.1", given) == "99.1: not yet" for given in wrong)
    assert set(json.loads(sealed.read_text())["99.1"]) == {"kind", "step", "salt", "hash"}


@pytest.mark.parametrize(
    ("sealed_as", "given", "error", "message"),
    [
        (3, "three", TypeError, r"exercise 99\.1 asks for a number, such as 3 or 0\.5, not a word \('three'\)"),
        (3, True, TypeError, "asks for a number, such as 3 or 0.5, not a yes or no"),
        (3, [3, 4], TypeError, "not a set of words"),
        (3, torch.ones(2), TypeError, "not a set of words"),
        ({"rome"}, "rome", TypeError, 'asks for a set of words, such as {"rome", "memit"}, not a word'),
        (True, 1, TypeError, "asks for a yes or no, such as True or False, not a number"),
        ("rome", None, TypeError, "an answer is a number, a word, True or False, or a set of words, not NoneType"),
        (3, float("nan"), ValueError, "the answer is nan, which is no finite number"),
    ],
)
def test_an_answer_of_another_kind_is_refused(sealed, sealed_as, given, error, message):
    seal("99.1", sealed_as)
    with pytest.raises(error, match=message):
        check("99.1", given)


def test_an_unknown_exercise_is_refused(sealed):
    seal("99.1", 3)
    with pytest.raises(ValueError, match=r"unknown exercise '99\.2'; those with a checked answer are 99\.1"):
        check("99.2", 3)
