"""What the papers say of same-subject editing, on the lab model with the shipped recipes: means over five seeds."""

import pytest

import kedit_lab as kl

AT_LEAST = {
    ("memit", "distinct"): {1: 0.95, 2: 0.95, 5: 0.95, 10: 0.95, 20: 0.95, 50: 0.92},
    ("memit-merge", "same"): {1: 0.95, 2: 0.95, 5: 0.92, 10: 0.90, 20: 0.75},
}
AT_MOST = {("memit", "same"): {2: 0.95, 5: 0.70, 10: 0.45, 20: 0.35, 50: 0.30}}


@pytest.fixture(scope="module")
def study(lab):
    return kl.collision_study(lab, kinds=("rewrite",)).groupby(["method", "subjects", "size"])["efficacy"].mean()


@pytest.mark.parametrize(("arm", "size"), [(arm, size) for arm, row in AT_LEAST.items() for size in row])
def test_efficacy_at_least(study, arm, size):
    assert study[(*arm, size)] >= AT_LEAST[arm][size]


@pytest.mark.parametrize(("arm", "size"), [(arm, size) for arm, row in AT_MOST.items() for size in row])
def test_collisions_cost_efficacy(study, arm, size):
    assert study[(*arm, size)] <= AT_MOST[arm][size]


def test_merge_leaves_the_neighbours_alone(lab):
    ten = kl.collision_study(lab, (10,), arms=[("memit-merge", "same")], kinds=("neighborhood",))
    assert ten["specificity"].mean() >= 0.95


def test_weights_come_back_after_the_study(lab, study):
    assert lab.fingerprint() == kl.load().fingerprint()


def test_early_stop_makes_the_collision_hard(lab):
    """With the published stop the residuals of one subject are just strong enough alone, and average away."""
    facts = kl.facts.by_density(30, per_subject=3)
    found = {}
    for stop in (0.05, 0.0):
        with kl.edit(lab, facts, "memit", stop=stop).applied():
            found[stop] = kl.evaluate(lab, facts, kinds=["rewrite"]).summary()["efficacy"]
    assert found[0.05] < found[0.0]


def test_collisions_are_seen_before_solving(lab):
    same, distinct = kl.facts.same_subject(10), kl.facts.distinct_subject(10)
    assert len(kl.collisions(lab, same)) == 45
    assert kl.collisions(lab, distinct).empty
    made = kl.edit(lab, same, "memit", steps=2)
    assert "10 of 10 facts share a key" in made.collisions
    assert "averaged" in made.collisions
    assert kl.edit(lab, distinct, "memit", steps=2).collisions == ""


def test_interchange_and_trace_agree(lab):
    """The subject's last token carries the fact early, and no longer late."""
    flips = kl.interchange(lab, kl.facts.twins(60)).groupby("layer")["flipped"].mean()
    assert flips.iloc[:3].max() > 0.8 > 0.2 > flips.iloc[-1]
    table = kl.trace(lab, kl.facts.by_density(1)[0])
    subject = table[table["is_subject"] & (table["layer"] <= 2)]
    assert table["clean"].iloc[0] > 0.5 > table["corrupted"].iloc[0]
    assert subject["restored"].max() > 0.5 * table["clean"].iloc[0]
