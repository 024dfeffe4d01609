"""The command line, on the lab model: every command does what its help says."""

import json

import pytest
import torch

from kedit_lab.cli import main
from kedit_lab.facts.world import World
from kedit_lab.study.bench import bench, bench_memory, bench_methods, peak_memory


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
    printed = capsys.readouterr().out
    for heading in ("plain, ms per fact", "equal ratio", "keys and residuals"):
        assert heading in printed


def test_methods_are_timed_at_equal_steps_too(lab):
    table = bench_methods(lab, 2, ["eamet", "rome"], steps=2)
    assert list(table.index) == ["memit", "eamet", "rome"]
    for seconds, ratio in (("seconds", "ratio"), ("equal seconds", "equal ratio")):
        assert table.loc["memit", ratio] == 1.0
        assert table.loc["eamet", ratio] == pytest.approx(table.loc["eamet", seconds] / table.loc["memit", seconds])
    assert table.loc["eamet", "steps"] > table.loc["memit", "steps"]  # memit's facts leave early


def test_memory_is_measured_where_it_is_taken(lab):
    """A known allocation is seen whole, and an edit is told with what it cannot do without."""
    size = 2**28
    _, peak = peak_memory(lab, lambda: [float(torch.ones(size // 4).sum()) for _ in range(4)])
    assert 0.9 * size < peak < 1.5 * size
    told = bench_memory(lab, 20, steps=2)
    assert told["model"] == pytest.approx(sum(p.numel() for p in lab.model.parameters()) * 4e-6)
    assert told["keys and residuals"] == pytest.approx(20 * (768 + 192) * 4e-6)
    whole = (told["model"] + told["peak"]) / (told["model"] + told["keys and residuals"])
    assert told["ratio"] == pytest.approx(whole)


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
