"""The command line, on the lab model: every command does what its help says."""

import json

import pytest

from kedit_lab.cli import main
from kedit_lab.facts.world import World
from kedit_lab.study.bench import bench


def test_bench_compares_two_forms_of_one_computation(lab):
    table = bench(lab, sizes=(1, 4)).set_index(["facts", "stage"])
    assert list(table.loc[4].index) == ["keys", "targets", "solve", "all"]
    assert (table["cosine of ΔW"] > 0.9999).all()  # the fast form and the plain form agree
    assert (table["ms per fact"] > 0).all()
    total = table.loc[4, "plain, ms per fact"]
    assert total["all"] == pytest.approx(total[["keys", "targets", "solve"]].sum())
    assert table.loc[(4, "targets"), "ratio"] > 1  # batching and caching win at all


def test_bench_prints(capsys):
    main(["bench", "--sizes", "1"])
    assert "plain, ms per fact" in capsys.readouterr().out


def test_doctor_names_the_edited_weight(capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "model.layers.0.mlp.down_proj.weight" in printed
    assert "passed" in printed


def test_world_is_written_again_as_committed(tmp_path):
    main(["world", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert {(s, r): o for s, r, o in written} == World.load().known


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["dance"])
    assert "invalid choice" in capsys.readouterr().err
