"""What the papers say of every method, on the lab model with the shipped recipes: means over five seeds, ten facts."""

from dataclasses import replace

import pytest

import kedit_lab as kl
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


EQUAL = {"steps": 30, "reuse": 1, "lr": 0.3, "stop": 0.05}  # one search and one stop for both


def dense(seed, n=60):
    return kl.facts.by_density(n, per_subject=3, seed=seed)


@pytest.fixture(scope="module")
def dense_results(lab):
    """Efficacy and summed misalignment of memit and eamet with equal steps and stop, three facts per subject."""
    found = {}
    for method in ("memit", "eamet"):
        rows = []
        for seed in (0, 1):
            made, report = trial(lab, dense(seed), method, kinds=("rewrite",), **EQUAL)
            layer = made.recipe.layers[-1]
            k = kl.keys(lab, dense(seed), layer, lab.prefixes(made.recipe.prefixes, made.recipe.prefix_length))
            residuals = made.at(layer).left.T.float()
            rows.append((report.summary()["efficacy"], float(kl.misalignment(residuals, k).sum())))
        found[method] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return found


def test_alignment_keeps_facts_of_one_subject_apart(dense_results):
    assert dense_results["eamet"][0] >= dense_results["memit"][0] + 0.25


def test_alignment_aligns(dense_results):
    assert dense_results["eamet"][1] <= dense_results["memit"][1] / 3


def test_few_passes_end_where_many_do(lab):
    """EAMET's six steps a pass: a step a pass, thirty times, writes no more, spares the same, and costs far more."""
    few, many = (trial(lab, dense(0), "eamet", kinds=("rewrite", "neighborhood"), **kw) for kw in ({}, EQUAL))
    assert few[1].summary()["efficacy"] >= many[1].summary()["efficacy"] - 0.05
    assert few[1].summary()["specificity"] >= many[1].summary()["specificity"] - 0.02
    assert sum(map(len, few[0].curves)) < sum(map(len, many[0].curves)) / 4


def test_alignment_costs_little_on_distinct_subjects(efficacy):
    assert efficacy("eamet", "distinct") >= efficacy("memit", "distinct") - 0.05


def test_blocks_end_where_one_by_one_ends(lab):
    """LAB-7: 300 facts, five draws, block=0 against 1: apart by less than draws are, in a third of the time at most."""
    rows = kl.results("LAB-7")
    for name in ("efficacy", "specificity"):
        draws = rows.pivot_table(name, ["per_subject", "seed"], "block").groupby("per_subject")
        gap = (draws.mean()[0] - draws.mean()[1]).abs()
        assert (gap < draws.std().min(axis=1)).all()
    sums = rows.pivot_table("misalignment", "per_subject", "block")
    assert (sums[0] / sums[1]).between(0.9, 1.1).all()
    seconds = rows.pivot_table("seconds", "per_subject", "block")
    assert (seconds[0] < seconds[1] / 3).all()
    assert kl.rerun(lab, "LAB-7", block=0, per_subject=3)["agrees"].all()


def test_blocks_follow_the_papers_order(lab):
    """The same with thirty facts, run now."""
    blocks, exact = (kl.load_study(lab, (30,), (3,), ("eamet",), prefixes=0, block=n).iloc[0] for n in (0, 1))
    assert abs(blocks["efficacy"] - exact["efficacy"]) <= 0.1
    assert abs(blocks["specificity"] - exact["specificity"]) <= 0.02
    assert blocks["misalignment"] == pytest.approx(exact["misalignment"], rel=0.5)


def test_seeing_each_other_makes_relatives_agree(lab):
    facts = dense(0, 30)
    found = [trial(lab, facts, method, kinds=("rewrite",))[1].summary() for method in ("eamet", "eamet-mutual")]
    assert found[1]["efficacy"] >= found[0]["efficacy"] + 0.25


def test_load_study_is_one_row_per_setting(lab):
    table = kl.load_study(lab, (9,), (1, 3), ("memit", "memit-merge"), prefixes=1, length=5, lam=10.0)
    assert len(table) == 4
    assert set(zip(table["per_subject"], table["method"], strict=True)) == {
        (d, m) for d in (1, 3) for m in ("memit", "memit-merge")
    }
    assert (table["load"] == 9 / lab.arch.d_k).all()
    rows = table.set_index(["per_subject", "method"])
    assert rows.loc[(3, "memit"), "efficacy"] < rows.loc[(3, "memit-merge"), "efficacy"]
    assert rows.loc[(3, "memit-merge"), "misalignment"] < rows.loc[(3, "memit"), "misalignment"]
    assert table[["prefixed", "specificity", "misalignment", "seconds"]].notna().all(axis=None)
    with pytest.raises(ValueError, match="ft is not a locate-then-edit recipe"):
        kl.load_study(lab, (2,), recipes=("ft",))


def test_last_token_has_no_collision(lab, efficacy):
    """At the prompt's last token facts of one subject differ; the price is paid by the neighbours."""
    assert efficacy("memit-last", "same") >= 0.90
    _, report = trial(lab, draw("same", 10), "memit-last", kinds=("neighborhood",))
    assert report.summary()["specificity"] < 0.9


def test_a_subject_in_parts_is_the_same_subject(lab):
    """PMET's NLL weighs a tenth once the targets are said, also where five facts are too many for a pass."""
    settings = {"prefixes": 1, "steps": 8, "stop": 0.0, "kl": 5.0}
    whole, parts, unsettled = (
        kl.edit(model, draw("same", 5), "pmet-merge", settled=settled, **settings).delta(2)
        for model, settled in ((lab, 0.1), (replace(lab, work=4e6), 0.1), (lab, 1.0))
    )
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    assert (unsettled - whole).norm() > 0.01 * whole.norm()


def test_groups_by_key_are_groups_by_subject_here(lab):
    facts = kl.facts.by_density(30, per_subject=3)
    table = kl.groups(lab, facts)
    assert (table.groupby("group")["subject"].nunique() == 1).all()
    assert table["size"].eq(3).all()
    assert table["closest"].min() > 0.99
    by_key = kl.edit(lab, facts, "memit-merge", group="key")
    by_subject = kl.edit(lab, facts, "memit-merge")
    layer = by_key.recipe.layers[-1]
    assert (by_key.delta(layer) - by_subject.delta(layer)).norm() < 1e-6 * by_key.delta(layer).norm()


def test_tuning_and_merging(lab):
    """R-SFT learns a hundred facts and costs passage reading; scaling and pruning its change gives that back."""
    facts = kl.facts.by_density(100)
    base = kl.passage_accuracy(lab, 300)
    tuned = kl.edit(lab, facts, "r-sft")
    found = {}
    for name, made in (("tuned", tuned), ("merged", kl.merge(tuned, scale=0.9, density=0.2))):
        with made.applied():
            efficacy = kl.evaluate(lab, facts, kinds=["rewrite"]).summary()["efficacy"]
            found[name] = efficacy, kl.passage_accuracy(lab, 300)
    assert found["tuned"][0] >= 0.95
    assert found["tuned"][1] < base - 0.05
    assert found["merged"][0] >= 0.90
    assert found["merged"][1] >= base - 0.03
