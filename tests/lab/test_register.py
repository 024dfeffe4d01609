"""The committed grids belong to the shipped model and to their registration, and a point run again agrees."""

import json

import pytest

import kedit_lab as kl
from kedit_lab.paths import data_dir
from kedit_lab.study import stored
from kedit_lab.study.compare import CASES, METHODS, case_facts, compared
from kedit_lab.study.register import EXPERIMENTS
from kedit_lab.study.stored import reproduce
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
    files = [data_dir() / "results" / name for name in ("S2-5.jsonl", "manifest.json")]
    before = [path.read_bytes() for path in files]
    reproduce(lab, "S2-5", progress=False)
    assert [path.read_bytes() for path in files] == before


def test_the_manifest_tells_what_is_stored():
    told = json.loads((data_dir() / "results" / "manifest.json").read_text())
    assert told == stored.manifest()
    assert set(told) == set(EXPERIMENTS)
    assert told["S2-5"]["points"] == 80
    assert len(told["S2-5"]["sha256"]) == 64


def test_a_point_run_again_agrees(lab):
    """The notebooks do so with a point of every grid; here with one that is quick."""
    again = kl.rerun(lab, "EA-15", batch=24, per_subject=3)
    assert again["agrees"].all(), again.query("not agrees").to_string()


def test_rerun_takes_the_first_values_and_leaves_times_out(lab):
    again = kl.rerun(lab, "S2-5")
    assert list(again) == ["stored", "live", "agrees"]
    assert "efficacy" in again.index
    first = kl.results("S2-5").query("mode == 'batch' and homogeneous and method == 'memit' and seed == 0").iloc[0]
    assert again.loc["efficacy", "stored"] == first["efficacy"]
    assert "seconds" not in kl.rerun(lab, "S2-3", method="rome").index


def test_rerun_tells_a_number_that_differs(lab, monkeypatch):
    rows = [row | {"efficacy": row["efficacy"] - 0.5} for row in stored.rows_of("S2-5")]
    monkeypatch.setattr(stored, "rows_of", lambda name: rows)
    assert kl.rerun(lab, "S2-5").query("not agrees").index.to_list() == ["efficacy"]


@pytest.mark.parametrize(
    ("name", "at", "says"),
    [
        ("S2-5", {"size": 5}, "S2-5 has no axis size; its axes are mode, homogeneous, method, seed"),
        ("S2-5", {"seed": 99}, "S2-5 has no point"),
        ("S2-99", {}, "unknown experiment 'S2-99'"),
    ],
)
def test_rerun_says_what_a_grid_has_not(lab, name, at, says):
    with pytest.raises(ValueError, match=says):
        kl.rerun(lab, name, **at)


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
