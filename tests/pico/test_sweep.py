"""Sweeps: a row per point in the grid's order, appended as they come, resumed after a kill, in parallel the same."""

import json
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

import kedit_lab as kl
from kedit_lab.model.lab import make_lab
from kedit_lab.study.sweep import Rows, name_of
from tests.pico.dying import full_disk
from tests.pico.tiny import KINDS, build

GRID = {"method": ["memit", "eamet"], "size": [1, 2, 5]}


unchecked = getattr(kl.sweep, "__wrapped__", kl.sweep)  # as users have it, whose types nobody checks


class Meter:
    """Counts its calls; fails at one of them, as a killed process would stop there."""

    def __init__(self, fails_at: int = 0) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fails_at = fails_at

    def __call__(self, _lab, method, size, scale=1.0):
        self.calls.append((method, size))
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        return {"efficacy": scale * size / 10}


Meter.__qualname__ = "Meter"


@pytest.fixture
def pico(tokenizer):
    return make_lab(build(KINDS["llama"].config), tokenizer, "llama")


def test_one_row_per_point_in_the_grids_order(pico):
    table = kl.sweep(pico, GRID, measure=Meter())
    assert list(table.columns) == ["method", "size", "efficacy"]
    assert list(zip(table["method"], table["size"], strict=True)) == [
        (m, s) for m in GRID["method"] for s in GRID["size"]
    ]
    assert list(table["efficacy"]) == [0.1, 0.2, 0.5] * 2


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_sweep_goes_on(pico, tmp_path, torn):
    path, whole = tmp_path / "a" / "sweep.jsonl", kl.sweep(pico, GRID, measure=Meter())
    with pytest.raises(KeyboardInterrupt):
        kl.sweep(pico, GRID, path, measure=Meter(fails_at=4))
    assert len(path.read_text().splitlines()) == 1 + 3
    if torn:  # the kill came in the middle of a line
        path.write_text(path.read_text()[:-9])
    meter = Meter()
    assert kl.sweep(pico, GRID, path, measure=meter).equals(whole)
    assert len(meter.calls) == (4 if torn else 3)
    assert [json.loads(line)["size"] for line in path.read_text().splitlines()[1:]].count(5) == 2
    nothing = Meter()
    assert kl.sweep(pico, GRID, path, measure=nothing).equals(whole)
    assert not nothing.calls
    wider = kl.sweep(pico, GRID | {"size": [1, 2, 5, 10]}, path, measure=nothing)
    assert nothing.calls == [("memit", 10), ("eamet", 10)]
    assert len(wider) == 8


def test_another_sweeps_file_is_refused(pico, tmp_path):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    before = path.read_text()
    with pytest.raises(ValueError, match=r"holds another sweep \(fixed differ\)"):
        kl.sweep(pico, GRID, path, measure=Meter(), scale=2.0)
    with pytest.raises(ValueError, match=r"holds another sweep \(axes differ\)"):
        kl.sweep(pico, GRID | {"scale": [1.0]}, path, measure=Meter())
    assert path.read_text() == before


@pytest.mark.parametrize("end", ["", "\n", "\n{}\n"])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("my notes", r"line 1 of .*sweep.jsonl is damaged \(Expecting value.*; give another path"),
        ('{"a": 1}', r"line 1 of .*sweep.jsonl lacks axes, base, measure, fixed; give another path"),
        ("[1, 2]", r"line 1 of .*sweep.jsonl lacks axes, base, measure, fixed; give another path"),
    ],
)
def test_a_foreign_file_stays_as_it_is(pico, tmp_path, line, end, says):
    path = tmp_path / "sweep.jsonl"
    path.write_text(line + end)
    with pytest.raises(ValueError, match=says):
        kl.sweep(pico, GRID, path, measure=Meter())
    assert path.read_text() == line + end


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_file_cut_in_its_first_line_is_begun_anew(pico, tmp_path, kept):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    before = path.read_bytes()
    path.write_bytes(before.split(b"\n")[0][:kept])
    kl.sweep(pico, GRID, path, measure=Meter())
    assert path.read_bytes() == before


def test_a_whole_first_line_of_other_versions_is_begun_anew(pico, tmp_path):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    head = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(head | {"versions": {}}))
    kl.sweep(pico, GRID, path, measure=Meter())
    assert json.loads(path.read_text().splitlines()[0]) == head


@pytest.mark.parametrize("torn", [0, 9])
def test_going_on_rewrites_nothing(pico, tmp_path, torn):
    """As on a disk that has filled up since: a file of half the size is all that could be written."""
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    path.write_bytes(path.read_bytes()[: -torn or None])
    found = path.read_bytes()
    kept = found[: found.rindex(b"\n") + 1]
    with full_disk(len(found) // 2):
        if torn:
            with pytest.raises(OSError, match="what was found before is kept, so make room and start again"):
                kl.sweep(pico, GRID, path, measure=Meter())
        else:
            kl.sweep(pico, GRID, path, measure=Meter())
    assert path.read_bytes() == kept


def test_one_sweep_at_a_time(pico, tmp_path):
    path = tmp_path / "sweep.jsonl"
    with pytest.raises(KeyboardInterrupt):
        kl.sweep(pico, GRID, path, measure=Meter(fails_at=2))
    told = json.loads(path.read_text().splitlines()[0])
    says = r"another run is writing .*sweep.jsonl; wait for it, or give another path"
    with closing(Rows(path, told)), pytest.raises(ValueError, match=says):
        kl.sweep(pico, GRID, path, measure=Meter())
    assert len(kl.sweep(pico, GRID, path, measure=Meter())) == 6


@pytest.mark.parametrize("line", ["[1, 2]", "3", '{"method": "memit", "efficacy": 1.0}'])
def test_a_line_that_is_no_row_is_named(pico, tmp_path, line):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"line 8 of .*sweep.jsonl lacks (method, )?size; remove the line"):
        kl.sweep(pico, GRID, path, measure=Meter())


def test_a_damaged_line_is_named(pico, tmp_path):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    lines = path.read_text().split("\n")
    for number in (1, 2):
        path.write_text("\n".join([*lines[: number - 1], lines[number - 1][:-2], *lines[number:]]))
        with pytest.raises(ValueError, match=f"line {number} of .* is damaged"):
            kl.sweep(pico, GRID, path, measure=Meter())


def test_a_grid_without_points_is_refused(pico):
    with pytest.raises(ValueError, match="has no points; give every axis at least one value"):
        kl.sweep(pico, {"method": ["memit"], "size": []})


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"method": "memit"}, r"axis 'method' is 'memit'; give a list of its values: \['memit'\]"),
        ({"method": ["memit"], "size": 3}, r"axis 'size' is 3; give a list of its values: \[3\]"),
        ([1, 2], r"the grid is \[1, 2\]; give a dict of axes"),
    ],
)
def test_what_is_no_grid_is_refused(pico, grid, says):
    with pytest.raises(ValueError, match=says):
        unchecked(pico, grid, measure=Meter())


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_jobs_are_counted_from_one(pico, jobs):
    with pytest.raises(ValueError, match=rf"jobs is {jobs}; give 1, 2, \.\.\. processes"):
        unchecked(pico, GRID, measure=Meter(), jobs=jobs)


def test_an_axis_may_be_a_generator(pico):
    table = kl.sweep(pico, {"method": iter(["memit"]), "size": (size for size in (1, 2))}, measure=Meter())
    assert list(table["size"]) == [1, 2]


def test_numpys_numbers_are_taken_and_kept(pico, tmp_path):
    def measure(_lab, size, scale, weights):
        assert type(size) is int
        return {"mean": np.float32(size * scale), "all": np.arange(2), "many": weights.sum() > np.int64(2)}

    path, grid = tmp_path / "sweep.jsonl", {"size": np.arange(1, 3), "scale": [np.float64(0.5), np.int64(1)]}
    table = kl.sweep(pico, grid, path, measure=measure, weights=np.arange(3))
    assert list(table["mean"]) == [0.5, 1.0, 1.0, 2.0]
    assert json.loads(path.read_text().splitlines()[1]) == {
        "size": 1, "scale": 0.5, "mean": 0.5, "all": [0, 1], "many": True
    }  # fmt: skip
    again = kl.sweep(pico, {"size": [1, 2], "scale": (0.5, 1)}, path, measure=measure, weights=np.arange(3))
    assert list(again["mean"]) == list(table["mean"])
    assert len(path.read_text().splitlines()) == 1 + 4
    with pytest.raises(ValueError, match="is no JSON; give numbers, texts, and lists of them"):
        kl.sweep(pico, {"size": [object()]}, measure=measure)


@pytest.mark.parametrize("given", [pd.DataFrame({"a": [1]}), iter([1, 2])], ids=["a table", "a generator"])
def test_what_a_file_could_not_tell_apart_is_refused(pico, tmp_path, given):
    """A table would be known by its columns alone, and a generator be used up."""
    with pytest.raises(ValueError, match="is no JSON; give numbers, texts, and lists of them"):
        kl.sweep(pico, {"size": [1]}, tmp_path / "sweep.jsonl", measure=lambda _lab, **_more: {"n": 1}, given=given)
    assert not list(tmp_path.glob("*")) or (tmp_path / "sweep.jsonl").read_bytes() == b""


def test_a_corpus_is_known_by_its_digest(pico, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    run = lambda limit: kl.sweep(  # noqa: E731
        pico, {"size": [1]}, tmp_path / "sweep.jsonl", measure=lambda _lab, **_more: {"n": 1},
        texts=kl.documents(tmp_path / "texts.txt", limit=limit),
    )  # fmt: skip
    run(2)
    assert "two" not in (tmp_path / "sweep.jsonl").read_text()
    with pytest.raises(ValueError, match=r"holds another sweep \(fixed differ\)"):
        run(1)


def test_equal_numbers_are_one_point(pico, tmp_path):
    path = tmp_path / "sweep.jsonl"
    kl.sweep(pico, GRID, path, measure=Meter())
    meter = Meter()
    kl.sweep(pico, GRID | {"size": [1.0, 2.0, 5.0, 2.5, np.float32(2.5)]}, path, measure=meter)
    assert meter.calls == [("memit", 2.5), ("eamet", 2.5)]
    assert name_of({"a": (1.0, [2]), "b": 1e22}) == name_of({"b": 10**22, "a": [1, (2.0,)]})
    assert len({name_of({"a": value}) for value in (1, True, 1.5, "1", 2**53 + 1, float(2**53))}) == 6


def test_an_unknown_axis_is_named(pico):
    with pytest.raises(ValueError, match="has no field 'sizes'"):
        kl.sweep(pico, {"sizes": [1]})
