"""Sweeps: a row per point in the grid's order, appended as they come, resumed after a kill, in parallel the same."""

import json

import pytest

import kedit_lab as kl
from kedit_lab.model.lab import make_lab
from tests.pico.tiny import KINDS, build

GRID = {"method": ["memit", "eamet"], "size": [1, 2, 5]}


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


def test_an_unknown_axis_is_named(pico):
    with pytest.raises(ValueError, match="has no field 'sizes'"):
        kl.sweep(pico, {"sizes": [1]})
