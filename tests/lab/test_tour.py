"""The tour's table is the collision study's, and is written whole or not at all."""

from dataclasses import replace

import pandas as pd
import pytest

import kedit_lab as kl
from kedit_lab.edit.run import attempt
from kedit_lab.study.collision import trial
from kedit_lab.study.sweep import misaligned, written
from kedit_lab.study.tour import overview, tour, write_table


@pytest.fixture(scope="module")
def table(lab):
    return tour(lab, sizes=(1, 5), seeds=(0, 1))


def test_there_is_one_row_per_method_batch_size_and_seed(table):
    at = ["method", "subjects", "size", "seed"]
    assert len(table) == 3 * 2 * 2
    assert not table.duplicated(at).any()
    assert table[["efficacy", "paraphrase", "specificity"]].apply(lambda column: column.between(0, 1)).all(axis=None)


def test_the_tour_leaves_the_model_as_it_was(lab, table):
    before = lab.fingerprint()
    again = tour(lab, sizes=(1,), seeds=(0,))
    assert lab.fingerprint() == before
    same = again.drop(columns="seconds")
    first = table[(table["size"] == 1) & (table["seed"] == 0)].drop(columns="seconds")[same.columns]
    pd.testing.assert_frame_equal(first.reset_index(drop=True), same)


def test_a_draw_that_the_model_says_already_is_measured_like_any_other(lab):
    (fact,) = kl.facts.by_density(1)
    so = [replace(fact, target_new=fact.target_true, target_true=None)]
    with pytest.raises(ValueError, match="says these targets already"):
        kl.edit(lab, so)
    made, report = trial(lab, so, "memit", kinds=["rewrite"])
    assert not made.deltas
    assert len(made.curves[0]) == 1
    assert sum(made.seconds.values()) > 0
    assert made.norms().empty
    assert report.summary()["efficacy"] == 1
    for method in ("memit", "r-sft"):
        assert not written(lab, so, method, "batch").deltas
    assert not attempt(lab, so, watch=lambda *_: None).deltas
    assert pd.isna(misaligned(lab, so * 2, made))


def test_the_overview_shows_the_collision(table):
    efficacy = overview(table)
    assert list(efficacy.columns) == [1, 5]
    assert efficacy.loc[("memit", "distinct"), 5] >= 0.9
    assert efficacy.loc[("memit", "same"), 5] <= 0.7
    assert efficacy.loc[("memit-merge", "same"), 5] - efficacy.loc[("memit", "same"), 5] >= 0.2
    with pytest.raises(ValueError, match="no column 'speed'; its columns are method"):
        overview(table, "speed")


@pytest.mark.parametrize(("sizes", "seeds", "name"), [((), (0,), "sizes"), ((1,), (), "seeds")])
def test_an_empty_tour_is_refused(lab, sizes, seeds, name):
    with pytest.raises(ValueError, match=f"{name} is empty"):
        tour(lab, sizes, seeds)


def test_the_table_is_written_atomically(table, tmp_path):
    path = write_table(table, tmp_path / "out" / "table.csv")
    read = pd.read_csv(path)
    assert list(read.columns) == list(table.columns)
    assert (read["efficacy"] - table["efficacy"]).abs().max() < 1e-4
    before = path.read_bytes()

    class Broken(pd.DataFrame):
        def to_csv(self, to, **_):
            to.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_table(Broken(table), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]
