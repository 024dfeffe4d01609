"""Batches by the distance of their keys, and EAMET's misalignment, on the embedded model."""

import pytest
import torch

import kedit_lab as kl
from kedit_lab.extract.betas import betas
from kedit_lab.study.aligned import aligned, behind, facts_of, geometry, own_weights, prepared, table_1, table_2
from kedit_lab.study.distance import KINDS, apart, batch, namesakes, relation_first


def test_kinds_ask_the_same_of_other_subjects():
    sets = {kind: batch(kind, 10, 1) for kind in KINDS}
    asked = [(fact.relation, fact.target_new) for fact in sets["distinct"]]
    assert all([(fact.relation, fact.target_new) for fact in facts] == asked for facts in sets.values())
    people = {kind: len({fact.subject for fact in facts}) for kind, facts in sets.items()}
    assert people == {"one subject": 1, "relation first": 1, "most share": 3, "half share": 6, "pairs": 5,
                      "one last name": 10, "distinct": 10}  # fmt: skip
    assert len({fact.subject.split()[-1] for fact in sets["one last name"]}) == 1
    assert relation_first(sets["distinct"])[0].text.endswith(f"{asked[0][0]} of {sets['distinct'][0].subject} is")


def test_unknown_kinds_and_too_few_namesakes_are_refused():
    with pytest.raises(ValueError, match="kind is 'far'; choose one of one subject"):
        batch("far", 3)
    with pytest.raises(ValueError, match="99 persons of one last name asked for"):
        namesakes(99)
    with pytest.raises(ValueError, match="choose one of once, drawn"):
        facts_of("twice", 3)


def test_apart_measures_the_geometry_that_decides(lab):
    found = {kind: apart(lab, kind, 3, prefixes=0, steps=8) for kind in ("one subject", "relation first", "distinct")}
    assert found["one subject"]["akd"] < 1e-3 < 0.1 < found["relation first"]["akd"] < found["distinct"]["akd"] / 10
    assert found["one subject"]["beta"] == pytest.approx(1 / 3, abs=0.01)
    assert found["one subject"]["beta"] + 0.02 < found["relation first"]["beta"] < found["distinct"]["beta"]


def test_drawn_facts_meet_their_subjects_again():
    once, drawn = facts_of("once", 300), facts_of("drawn", 300)
    assert len({fact.subject for fact in once}) == len(once) == len(drawn) == 300
    assert 200 < len({fact.subject for fact in drawn}) < 280
    assert len({(fact.subject, fact.relation) for fact in drawn}) == 300
    assert [f.text for f in drawn] != [f.text for f in facts_of("drawn", 300, seed=1)]


def test_geometry_is_what_the_solver_saw(lab):
    facts = kl.facts.by_density(4, 2)
    made = kl.edit(lab, facts, "memit", prefixes=1, steps=4)
    k, r = geometry(lab, facts, made)
    layer = made.recipe.layers[-1]
    written = betas(k, kl.second_moment(lab, layer), made.recipe.lam) @ r.double()
    torch.testing.assert_close(k.double() @ made.delta(layer).T, written, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="ft-m is not a locate-then-edit recipe"):
        geometry(lab, facts, kl.edit(lab, facts[:1], "ft-m", epochs=1))


def test_aligned_counts_who_shares_a_subject(lab):
    found = aligned(lab, "drawn", 12, seed=3, texts=1)
    people = [fact.subject for fact in facts_of("drawn", 12, 3)]
    assert found["shared"] == sum(people.count(name) > 1 for name in people) / 12
    assert found["misalignment"] > 0
    assert {f"{part}_{length}" for part in ("all", "low", "high") for length in (0, 5, 10, 50)} < set(found)
    assert behind(lab, facts_of("once", 3), 0).tolist() == [0, 0, 0], "the unedited model says none of them"


def test_the_papers_tables_stand_beside_the_grid():
    grid = kl.results("EA-1")
    both = table_1(grid)
    theirs = both[both["batch"] == "paper, DeepSeek-7B"].set_index("N")
    assert theirs["A per fact"].round(3).to_dict() == {200: 0.34, 500: 0.446, 1000: 0.562}
    assert len(both) == len(grid) + 6
    ours, theirs = table_2(grid.iloc[0])
    at = theirs.pivot(index="tokens in front", columns="facts", values="value")
    assert (at.loc[50, "all facts"], at.loc[50, "ten lowest A"], at.loc[5, "ten highest A"]) == (0.774, 0.9, 0.46)
    assert list(ours["facts"].unique()) == ["all facts", "ten lowest A", "ten highest A"]
    assert ours["accuracy"].iloc[0] == grid["all_0"].iloc[0]


def test_own_weights_of_copies_and_of_lone_keys():
    one, crowd = torch.eye(8, dtype=torch.float64)[0], torch.eye(8, dtype=torch.float64)[2:]
    other = torch.eye(8, dtype=torch.float64)[1]
    found = own_weights([one.expand(3, -1), other.expand(3, -1)], crowd, torch.eye(8), 1e-9)
    assert found["own"].to_list() == pytest.approx([1, 1, 1 / 2, 1 / 2, 1 / 3, 1 / 3])
    assert found["next"].to_list() == pytest.approx([0, 0, 1 / 2, 1 / 2, 1 / 3, 1 / 3])


def test_keys_take_longer_than_their_similarities(lab):
    found = prepared(lab, 60)
    assert found["keys"] > found["similarities"] >= 0
    assert 0 < found["mean_cosine"] < 1
