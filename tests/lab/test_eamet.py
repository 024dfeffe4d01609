"""EAMET's points measure what their names say: lengths, order, relations, batches, cost at equal steps."""

from collections import Counter

import pytest

import kedit_lab as kl
from kedit_lab.study.eamet import RELATIONS, batched, behind, by_relation, ordered, priced, relation_facts

SMALL = {"size": 6, "per_subject": 1, "seed": 0}


def test_behind_nothing_is_plain_efficacy(lab):
    found = behind(lab, "memit", lengths=(0, 5), contexts=2, **SMALL)
    assert list(found) == ["0", "5"]
    assert found["0"] == kl.point(lab, "memit", **SMALL)["efficacy"]
    assert 2 * 6 * found["5"] == pytest.approx(round(2 * 6 * found["5"])), "a mean over two texts and six facts"


def test_a_batch_that_looks_at_no_order_has_none(lab):
    """MEMIT keeps the same facts of a subject, whichever comes first."""
    a, b = (ordered(lab, "memit", order, size=6, per_subject=3, seed=0) for order in (0, 1))
    assert a["efficacy"] == b["efficacy"]
    assert a["specificity"] == pytest.approx(b["specificity"], abs=0.02), "rounding may turn one of sixty neighbours"
    alone = ordered(lab, "memit", 1, **SMALL)
    assert alone["first"] == alone["last"] == alone["efficacy"]


@pytest.mark.parametrize("per_subject", [1, 3])
def test_every_relation_is_asked_equally_often(per_subject):
    facts = relation_facts(30, per_subject)
    assert set(Counter(fact.relation for fact in facts).values()) == {6}
    assert set(Counter(fact.subject for fact in facts).values()) == {per_subject}
    assert len({(fact.subject, fact.relation) for fact in facts}) == 30
    assert all(fact.target_new not in (fact.target_true, fact.subject) for fact in facts)


@pytest.mark.parametrize(("size", "per_subject"), [(30, 6), (31, 1), (10, 3)])
def test_a_ring_that_does_not_close_is_refused(size, per_subject):
    with pytest.raises(ValueError, match=f"size is {size}, per_subject {per_subject}, for 5 relations"):
        relation_facts(size, per_subject)


def test_relations_are_measured_one_by_one(lab):
    found = by_relation(lab, "memit", size=5, per_subject=1, seed=0)
    assert {name.replace(" ", "_") for name in found} == set(RELATIONS)
    assert set(found.values()) == {1.0}


def test_one_batch_of_all_is_a_batch(lab):
    whole = batched(lab, "memit", 6, **SMALL)
    assert whole["efficacy"] == kl.point(lab, "memit", **SMALL)["efficacy"]
    assert batched(lab, "memit", 3, **SMALL)["efficacy"] >= 5 / 6, "strangers of two batches leave each other alone"


def test_memit_costs_what_memit_costs(lab):
    found = priced(lab, "memit", 2, seed=0)
    assert found["ratio"] == found["equal ratio"] == 1
    assert found["seconds"] > 0
