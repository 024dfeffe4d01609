"""What is suggested for the lab model without knowing its tuned values, and what an edit with it keeps."""

import pytest

import kedit_lab as kl
from kedit_lab.edit.published import LAB


@pytest.fixture(scope="module")
def few():
    return kl.facts.distinct_subject(6)


@pytest.fixture(scope="module")
def suggested(lab, few):
    return kl.suggest(lab, few, pairs=30, rates=(0.05, 0.1, 0.3, 0.8))


def test_the_layer_is_the_tuned_one_or_its_neighbour(lab, suggested):
    layers = suggested.values["layers"]
    assert abs(layers[-1] - LAB["layers"][0]) <= 1
    assert list(suggested.layers.index) == list(range(lab.arch.layers))
    assert suggested.layers.loc[layers[-1], "flipped"] > 0.6
    assert suggested.layers.loc[lab.arch.layers - 1, "kept"] > 0.9


def test_memit_works_with_the_suggested_values(lab, suggested):
    facts = kl.facts.distinct_subject(10, seed=1)
    with kl.edit(lab, facts, "memit", **suggested.values).applied():
        told = kl.evaluate(lab, facts, kinds=["rewrite", "neighborhood"]).summary()
    assert told["efficacy"] >= 0.9
    assert told["specificity"] >= 0.9


def test_a_smaller_step_takes_more_steps_and_a_shorter_way(suggested):
    assert suggested.steps.loc[0.05, "steps"] > suggested.steps.loc[0.3, "steps"]
    assert suggested.steps.loc[0.05, "length"] < suggested.steps.loc[0.8, "length"]
    assert suggested.values["lr"] in suggested.steps.index
    assert suggested.values["lr_unit"] == "hidden"


def test_the_same_seed_suggests_the_same(lab, few, suggested):
    before = lab.fingerprint()
    again = kl.suggest(lab, few, pairs=30, rates=(0.3,))
    assert again.layers.equals(suggested.layers)
    assert lab.fingerprint() == before


def test_too_few_subjects_are_refused(lab):
    with pytest.raises(ValueError, match="the facts have 1 subject; give facts of two or more"):
        kl.suggest(lab, kl.facts.same_subject(3))
