"""The command line, on the lab model: every command does what its help says."""

import json
from dataclasses import replace

import pytest
import torch

from kedit_lab.cli import main
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import TABLE, find
from kedit_lab.facts.sets import by_density
from kedit_lab.facts.world import World
from kedit_lab.study.bench import bench, bench_memory, bench_methods, peak_memory
from kedit_lab.study.cost import stages
from kedit_lab.study.scale import extrapolated, many, scale
from kedit_lab.study.shapes import CONFIGS, random_lab


def test_bench_compares_two_forms_of_one_computation(lab):
    table = bench(lab, sizes=(1, 4)).set_index(["facts", "stage"])
    assert list(table.loc[4].index) == ["keys", "targets", "solve", "all"]
    assert (table["cosine of ΔW"] > 0.9999).all()  # the fast form and the plain form agree
    assert (table["ms per fact"] > 0).all()
    total = table.loc[4, "plain, ms per fact"]
    assert total["all"] == pytest.approx(total[["keys", "targets", "solve"]].sum())
    assert table.loc[(4, "targets"), "ratio"] > 1  # batching and caching win at all


def test_plain_form_may_run_on_some_facts_alone(lab):
    table = bench(lab, sizes=(3,), plain=1, steps=2).set_index("stage")
    assert (table["plain facts"] == 1).all()
    assert (table["cosine of ΔW"] > 0.9999).all()


def test_arithmetic_is_about_a_quarter_of_the_plain_forms(lab):
    """By the count of what cannot be left out, and near it by the count of what is done."""
    _, told = stages(lab, by_density(20))
    assert 0.2 < told["floor"] < 0.33
    assert told["stands"] < 1.4 * told["floor"]


def test_bench_prints(capsys):
    main(["bench", "--sizes", "1", "--methods", "memit", "eamet"])
    printed = capsys.readouterr().out
    for heading in ("plain, ms per fact", "share of the rate", "optimiser", "equal ratio", "keys and residuals"):
        assert heading in printed
    assert "one edit each, passes as large as makes them fast" in printed
    assert "one edit each, passes of 5.7 MB" in printed, "0.3 of 18.9"


def test_bench_of_a_shape(capsys, monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_head": 2})
    main(["bench", "--shape", "small", "--sizes", "2", "4", "--extrapolate", "1000", "--plain", "1", "--steps", "2",
          "--reuse", "2"])  # fmt: skip
    printed = capsys.readouterr().out
    for heading in ("plain, ms per fact", "share of the rate", "facts a second", "extrapolated", "memit-merge"):
        assert heading in printed


def test_prefixes_of_random_weights_have_their_length(monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "n_head": 2})
    random = random_lab("small")
    assert min(len(random.tokenizer(text)["input_ids"]) for text in random.prefixes(5, 10)) >= 8


def test_scale_says_what_was_measured(lab):
    table = scale(lab, (2, 4), (40,), ("memit", "eamet"), steps=2).set_index(["method", "facts"])
    assert list(table["how"]) == ["measured", "measured", "extrapolated"] * 2
    for method in ("memit", "eamet"):
        four, forty = table.loc[(method, 4)], table.loc[(method, 40)]
        assert forty["targets"] == pytest.approx(10 * four["targets"])
        assert four["seconds"] == pytest.approx(four[["targets", "solve", "apply"]].sum())
        assert four["facts a second"] == pytest.approx(4 / four["seconds"])
        assert forty["peak MB"] >= four["peak MB"] > 4e-6 * sum(p.numel() for p in lab.model.parameters())


def test_extrapolation_to_a_measured_size_is_the_measurement(lab):
    recipe = find("memit").on(lab.arch)
    row = {"keys": 1.0, "targets": 5.0, "solve": 3.0, "apply": 0.5, "peak": 7.0, "share of the rate": 0.4}
    assert extrapolated(lab, recipe, {8: row}, 8) == pytest.approx(row)
    smaller = row | {"peak": 5.0}
    assert extrapolated(lab, recipe, {4: smaller, 8: row}, 16)["peak"] == pytest.approx(11.0)


def test_more_facts_than_the_world_has_are_about_numbered_namesakes():
    facts = many(2500)
    assert len({(fact.subject, fact.prompt) for fact in facts}) == 2500
    assert facts[:1000] == by_density(1000, 2)


def test_methods_are_timed_at_equal_steps_too(lab):
    table = bench_methods(lab, 2, ["eamet", "rome"], steps=2)
    assert list(table.index) == ["memit", "eamet", "rome"]
    for seconds, ratio in (("seconds", "ratio"), ("equal seconds", "equal ratio")):
        assert table.loc["memit", ratio] == 1.0
        assert table.loc["eamet", ratio] == pytest.approx(table.loc["eamet", seconds] / table.loc["memit", seconds])
    assert table.loc["eamet", "steps"] > table.loc["memit", "steps"]  # memit's facts leave early


def test_every_recipe_that_locates_is_timed(lab):
    table = bench_methods(lab, 1, steps=2)
    assert set(table.index) == {name for name, recipe in TABLE.items() if isinstance(recipe, Recipe)}
    assert table.notna().all(axis=None)


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
    assert bench_memory(lab, 2, "rome", steps=2)["keys and residuals"] == pytest.approx(2 * (2 * 768 + 192) * 4e-6)


def test_small_passes_hold_less(lab):
    """The bound of a pass is seen in the peak of the whole edit."""
    fast, small = (bench_memory(bound, 80) for bound in (lab, replace(lab, work=8_000_000)))
    assert small["work"] == 8.0
    assert small["peak"] < fast["peak"] / 2


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("bench --plain 0", "argument --plain: '0' is not 1, 2, ..."),
        ("bench --sizes 2 -1", "argument --sizes: '-1' is not 1, 2, ..."),
        ("bench --steps 0", "argument --steps: '0' is not 1, 2, ..."),
        ("bench --work 0", "argument --work: '0' is no size in MB"),
        ("bench --work nan", "argument --work: 'nan' is no size in MB"),
        ("train --steps -1", "argument --steps: '-1' is not 1, 2, ..."),
    ],
)
def test_numbers_that_make_no_sense_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(KeyboardInterrupt(), 130, "interrupted"), (MemoryError(), 2, "out of memory"), (ValueError("so"), 2, "so")],
)
def test_what_ends_a_command_is_one_line(error, code, told, monkeypatch, capsys):
    def tour(_lab):
        raise error

    monkeypatch.setattr("kedit_lab.cli.tour", tour)
    with pytest.raises(SystemExit) as left:
        main(["tour"])
    assert (left.value.code, capsys.readouterr().err) == (code, f"kedit-lab: {told}\n")
