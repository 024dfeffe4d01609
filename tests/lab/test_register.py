"""The committed grids belong to the shipped model and to their registration, and a point run again agrees."""

import json

import pytest

import kedit_lab as kl
from kedit_lab.paths import data_dir
from kedit_lab.study.compare import CASES, METHODS, case_facts, compared
from kedit_lab.study.register import EXPERIMENTS, reproduce
from kedit_lab.study.sweep import name_of


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_grid_is_complete_and_of_the_shipped_model(lab, name):
    asked = EXPERIMENTS[name]
    head = json.loads((data_dir() / "results" / f"{name}.jsonl").read_text().splitlines()[0])
    assert head["base"] == lab.fingerprint()
    assert head["measure"] == asked.measure.__qualname__
    assert head["fixed"] == json.loads(json.dumps(asked.fixed))
    rows = kl.results(name)
    assert list(head["axes"]) == list(asked.grid)
    expected = 1
    for values in asked.grid.values():
        expected *= len(values)
    assert len(rows) == expected == len({name_of(row) for row in rows[list(asked.grid)].to_dict("records")})


def test_reproduce_has_nothing_left_to_do(lab):
    before = (data_dir() / "results" / "S2-5.jsonl").read_bytes()
    reproduce(lab, "S2-5", progress=False)
    assert (data_dir() / "results" / "S2-5.jsonl").read_bytes() == before


def test_points_run_again_agree(lab):
    stored = kl.results("MM-1").query("method == 'memit-merge' and size == 10 and seed == 1").set_index("subjects")
    for subjects in ("same", "distinct"):
        again = kl.point(lab, "memit-merge", size=10, subjects=subjects, seed=1)
        assert again["efficacy"] == pytest.approx(stored.loc[subjects, "efficacy"], abs=0.11)


def test_compared_measures_what_the_grid_holds(lab):
    stored = kl.results("LAB-3").query("case == 'same'").set_index("method").loc["ft-m"]
    again = compared(lab, "ft-m", "same")
    assert again["seconds"] > 0
    assert again["megabytes"] > 0
    assert again["efficacy"] == pytest.approx(stored["efficacy"], abs=0.07)
    assert again["ability"] == pytest.approx(stored["ability"], abs=0.02)


def test_compared_says_why_a_method_refuses_a_case(lab):
    refused = compared(lab, "mend", "sequential")
    assert refused["refused"].startswith("data/mend/editor.safetensors was trained for weights")
    assert "efficacy" not in refused


def test_cases_have_their_sizes_and_others_are_refused():
    people = [len({fact.subject for fact in case_facts(case)}) for case in CASES]
    assert people == [30, 3, 200, 30]
    with pytest.raises(ValueError, match="choose one of distinct"):
        case_facts("dense")
    assert METHODS[0] == "unedited"
