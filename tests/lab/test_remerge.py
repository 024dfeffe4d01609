"""A sequence as one edit is its weights, bit for bit, and a merged edit is measured beside the whole one."""

import pytest
import torch

import kedit_lab as kl
from kedit_lab.study.remerge import remerged, whole_change


def test_a_sequence_as_one_edit_gives_the_same_weights(lab):
    run = kl.sequence(lab, [[fact] for fact in kl.facts.by_density(2)], "r-sft", every=2)
    made = whole_change(run)
    assert len(made.facts) == 2
    with run.applied():
        wanted = {name: lab.arch.weight(name).module.weight.clone() for name in made.deltas}
        with pytest.raises(ValueError, match=r"batches 1 to 2 of this run; undo\(\) them"):
            whole_change(run)
    with made.applied():
        for name, weight in wanted.items():
            assert torch.equal(lab.arch.weight(name).module.weight, weight)


def test_merging_prunes_what_was_measured_before(lab):
    found = remerged(lab, "r-sft", "batch", size=4, questions=20, scale=0.0, density=1.0, repeats=3)
    plain = remerged(lab, "r-sft", "batch", size=4, questions=20, scale=1.0, density=1.0, repeats=3)
    assert found["efficacy"] == plain["efficacy"] == plain["merged_efficacy"] > found["merged_efficacy"]
    assert found["merged_specificity"] == 1.0
