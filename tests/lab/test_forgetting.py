"""The measures behind the grids on sequences: they agree with the sequences themselves and leave no trace."""

import pandas as pd
import pytest
import torch

import kedit_lab as kl
from kedit_lab.study.forgetting import TEXTS, batches_of, chains, forgetting, unfolded, unrelated
from kedit_lab.study.routing import routing
from kedit_lab.study.sequence import lab_reference


def test_batches_share_all_subjects_or_none():
    for setting, people in (("distinct", 8), ("shared", 4)):
        batches = batches_of(setting, count=2, size=4)
        subjects = [{fact.subject for fact in batch} for batch in batches]
        assert [len(names) for names in subjects] == [4, 4]
        assert len(subjects[0] | subjects[1]) == people
        assert len({fact.text for batch in batches for fact in batch}) == 8
        assert len(unrelated(batches)) == 8
        assert not any(name in text for name in subjects[0] | subjects[1] for text in unrelated(batches))
    with pytest.raises(ValueError, match="setting is 'dense'; choose one of distinct, shared, random"):
        batches_of("dense")


def test_merging_afterwards_is_merging_on_the_way(lab):
    batches, brief = batches_of("shared", count=3, size=2), lab_reference(lab, 1)
    for base, ratio, states, _ in chains(lab, batches, "memit", (0.5,), ("plain",), steps=3):
        merge = None if base == "none" else kl.Merge(ratio, base)
        run = kl.sequence(lab, batches, "memit", merge, reference=brief, steps=3)
        for ours, theirs in zip(states, run.states, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_forgetting_measures_what_a_sequence_keeps(lab):
    before = lab.fingerprint()
    row = forgetting(lab, count=2, size=3, bases=("plain",), questions=10)
    assert lab.fingerprint() == before
    rows = pd.DataFrame([{"method": "memit"} | row])
    kept, whole, weights = (unfolded(rows, name) for name in ("kept", "whole", "weights"))
    assert len(kept) == 2 * 2 * 2  # alone and merged, with and without the router, two batches
    run = kl.sequence(lab, batches_of("shared", count=2, size=3), "memit", reference=lab_reference(lab, TEXTS))
    alone = kept.query("base == 'none' and not router").set_index("batch")["efficacy"]
    assert alone.to_dict() == run.matrix().loc[2].to_dict()
    assert "written" not in kept
    assert weights["kls"][0] == pytest.approx(run.health["kl"].to_list(), rel=1e-6)
    kl_of = whole.set_index(["base", "router"])["kl"]
    assert kl_of["none", False] == pytest.approx(run.health["kl"].iloc[-1], rel=1e-6)
    assert kl_of["none", True] <= kl_of["none", False]
    routed = kept[kept["router"]].set_index(["base", "batch"])["specificity"]
    assert (routed >= kept[~kept["router"]].set_index(["base", "batch"])["specificity"]).all()
    assert whole["ability"].between(0, 1).all()


def test_what_was_written_is_read_right_behind_each_batch(lab):
    """Alone and merged: the diagonal of the retention matrix, beside its last row."""
    before = lab.fingerprint()
    row = forgetting(lab, setting="random", count=3, size=4, bases=("plain",), questions=10, written=True)
    assert lab.fingerprint() == before
    rows = unfolded(pd.DataFrame([row]))
    batches, quiet = batches_of("random", count=3, size=4), {"reference": lab_reference(lab, 1)}
    for arm, merge in (("none", None), ("plain", kl.Merge())):
        matrix = kl.sequence(lab, batches, "memit", merge, **quiet).matrix()
        found = rows[(rows["base"] == arm) & ~rows["router"]].set_index("batch")
        assert found["written"].to_dict() == {b: matrix.loc[b, b] for b in (1, 2, 3)}
        assert found["efficacy"].to_dict() == matrix.loc[3].to_dict()


def test_two_votes_route_as_the_nearest_prompt_does(lab):
    one, two = (routing(lab, k, setting="distinct", count=2, size=5) for k in (1, 2))
    assert one == two
    assert one["edit"] == 1
    assert routing(lab, 2, "hidden states", count=2, size=5)["edit"] == 1
    with pytest.raises(ValueError, match="embedder is 'words'; choose one of letters, hidden states"):
        routing(lab, embedder="words")
