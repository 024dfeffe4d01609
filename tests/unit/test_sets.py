"""Sets of facts: what every fact carries, and what the sets have in common or keep apart."""

from collections import Counter
from dataclasses import replace

import pytest

from kedit_lab import facts as sets
from kedit_lab.facts.sets import lab_world, pair
from kedit_lab.facts.world import CLASSES
from kedit_lab.types import Fact


@pytest.fixture(scope="module")
def world():
    return lab_world()


@pytest.fixture(scope="module")
def every(world):
    """Edits of all facts of a quarter of the subjects of every class (S2RKE's star form)."""
    return [fact for cls in CLASSES for fact in sets.related(len(world.of_class(cls)) // 4, cls)]


def relation_of(world, fact):
    (relation,) = [r for r in world.relations.values() if r.name == fact.relation]
    return relation


@pytest.fixture(scope="module")
def named(world):
    return {relation.name: relation for relation in world.relations.values()}


def test_pairs_share_first_and_last_subject_or_not():
    for seed in range(5):
        same, other = pair(6, True, seed), pair(6, False, seed)
        assert same[0].subject == same[-1].subject
        assert same[0].relation != same[-1].relation
        assert len({fact.subject for fact in same}) == 5
        assert len({fact.subject for fact in other}) == 6
        assert same[:-1] == other[:-1]
    with pytest.raises(ValueError, match="n is 1; a first and a last edit make at least 2"):
        pair(1)


def test_every_fact_can_be_edited(world, every, named):
    assert len(every) > 3500
    subjects = {fact.subject for fact in every}
    known = Counter(pair for pair in world.known if pair[0] in subjects)
    assert Counter((fact.subject, named[fact.relation].id) for fact in every) == known
    for fact in every:
        relation = named[fact.relation]
        assert fact.prompt == f"{{}}'s {fact.relation} is"
        assert fact.target_true == world.known[fact.subject, relation.id]
        assert fact.target_new in world.objects[relation.id]
        assert fact.target_new not in (fact.target_true, fact.subject)


def test_paraphrases_are_trained_and_not_the_edits_template(world, every, named):
    for fact in every:
        relation = named[fact.relation]
        trained = {world.prompt(relation, key, fact.subject) for key in relation.trained}
        assert len(set(fact.paraphrases)) == len(fact.paraphrases) >= 2
        assert set(fact.paraphrases) <= trained - {fact.text}
        assert world.prompt(relation, relation.withheld, fact.subject) not in fact.paraphrases


@pytest.mark.parametrize("template", ["relation_first", "cloze0"])
def test_paraphrases_of_another_template(world, template):
    relation = world.relations["employer"]
    fact = sets.sets.make_fact(world, "John Smith", relation, "Sorvane Aviation", sets.sets.random.Random(1), template)
    assert fact.text == world.prompt(relation, template, "John Smith")
    assert len(fact.paraphrases) >= 2
    assert fact.text not in fact.paraphrases


def test_neighbours_share_the_object_and_keep_it(world, every, named):
    for fact in every:
        relation = named[fact.relation]
        asked = {world.prompt(relation, key, name): name
                 for name in world.holders[relation.id, fact.target_true] for key in relation.trained}  # fmt: skip
        assert len({probe.prompt for probe in fact.neighborhood}) == len(fact.neighborhood) == 10
        for probe in fact.neighborhood:
            assert asked[probe.prompt] != fact.subject
            assert probe.answer == fact.target_true != fact.target_new


def test_neighbours_of_an_unknown_fact(world, named):
    unknown = [fact for fact in sets.same_subject(100) if fact.target_true is None]
    assert unknown
    for fact in unknown:
        relation = named[fact.relation]
        assert len(fact.neighborhood) == 10
        for probe in fact.neighborhood:
            subject = probe.prompt.removesuffix(f"'s {fact.relation} is")
            assert subject != fact.subject
            assert probe.answer == world.known[subject, relation.id] != fact.target_new, probe


def test_portability_probes_of_three_kinds(world, every, named):
    kinds = Counter(probe.kind for fact in every for probe in fact.portability)
    assert set(kinds) == {"alias", "inverse", "composition"}
    assert min(kinds.values()) > 200
    for fact in every:
        relation, alias = named[fact.relation], world.subjects[fact.subject].alias
        found = {probe.kind: probe for probe in fact.portability}
        assert ("alias" in found) == bool(alias)
        if alias:
            assert (found["alias"].prompt, found["alias"].answer) == (f"{alias}'s {fact.relation} is", fact.target_new)
        if "inverse" in found:
            assert found["inverse"].answer == fact.subject
            assert fact.target_new in found["inverse"].prompt
        for probe in fact.portability:
            if probe.kind == "composition":
                tables = [world.attributes[relation.range][name] for name in relation.compose]
                assert probe.answer in {table.get(fact.target_new) for table in tables}
                assert probe.prompt.endswith(f" of the {fact.relation} of {fact.subject} is")


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_one_subject_or_many(world, n, seed):
    same, distinct = sets.same_subject(n, seed), sets.distinct_subject(n, seed)
    assert len(same) == len(distinct) == n
    assert len({fact.subject for fact in same}) == 1
    assert len({fact.subject for fact in [same[0], *distinct]}) == n + 1
    assert len({fact.relation for fact in same}) == n
    for ours, theirs in zip(same, distinct, strict=True):
        assert (ours.relation, ours.prompt, ours.target_new) == (theirs.relation, theirs.prompt, theirs.target_new)
        asked = [[text.replace(fact.subject, "{}") for text in fact.paraphrases] for fact in (ours, theirs)]
        assert asked[0] == asked[1]
        for fact in (ours, theirs):
            assert fact.target_new not in (fact.subject, fact.target_true)
            assert fact.target_true == world.known.get((fact.subject, relation_of(world, fact).id))


def test_targets_differ_where_they_can():
    targets = [fact.target_new for fact in sets.same_subject(20)]
    assert len(set(targets)) == 20


def test_seed_zero_is_john_smith_and_sets_come_again():
    assert sets.same_subject(3)[0].subject == "John Smith"
    assert sets.same_subject(5, seed=4) == sets.same_subject(5, seed=4)
    assert sets.by_density(5, 2, seed=4) == sets.by_density(5, 2, seed=4)


@pytest.mark.parametrize(
    "draw", [sets.same_subject, sets.distinct_subject, sets.by_density, sets.at_random, sets.twins]
)
def test_another_seed_gives_another_set(draw):
    a, b = (
        [f for item in draw(20, seed=seed) for f in (item if isinstance(item, tuple) else (item,))] for seed in (1, 2)
    )
    assert {f.subject for f in a} != {f.subject for f in b}
    assert [f.relation for f in a] != [f.relation for f in b]
    assert [f.target_new for f in a] != [f.target_new for f in b]


@pytest.mark.parametrize("n", [0, -1, 101])
@pytest.mark.parametrize("draw", [sets.same_subject, sets.distinct_subject])
def test_sizes_out_of_range(draw, n):
    with pytest.raises(ValueError, match=f"{n} facts asked for; give a number from 1 to 100"):
        draw(n)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (12, 1), (12, 2), (12, 3), (20, 20), (1, 5), (400, 1)])
def test_density(n, k):
    facts = sets.by_density(n, k)
    assert len(facts) == n
    assert set(Counter(fact.subject for fact in facts).values()) == {min(n, k)}
    assert len({(fact.subject, fact.relation) for fact in facts}) == n
    assert all(fact.target_true and fact.target_new != fact.target_true for fact in facts)


def test_facts_at_random_bring_some_subjects_back(world):
    facts = sets.at_random(200, seed=3)
    assert len({(fact.subject, fact.relation) for fact in facts}) == 200
    assert all(fact.target_true and fact.target_new != fact.target_true for fact in facts)
    assert 150 < len({fact.subject for fact in facts}) < 200
    assert sets.at_random(200, seed=3) == facts
    with pytest.raises(ValueError, match=r"n is 0; \d+ facts are known of class Person"):
        sets.at_random(0)


def test_density_that_does_not_divide():
    assert sorted(Counter(fact.subject for fact in sets.by_density(7, 3)).values()) == [1, 3, 3]


def test_density_of_another_class(world):
    assert {world.subjects[fact.subject].cls for fact in sets.by_density(9, 3, cls="Building")} == {"Building"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0 and per_subject is 1; both must be at least 1"),
        ({"n": 3, "per_subject": 0}, "n is 3 and per_subject is 0; both must be at least 1"),
        ({"n": 3, "per_subject": 23}, "1 subjects of class Person with 23 facts are needed; there are 0"),
        ({"n": 641}, "641 subjects of class Person with 1 facts are needed; there are 640"),
        ({"n": 1, "cls": "Planet"}, "unknown class 'Planet'; the classes are Abstraction, Artifact, Building"),
    ],
)
def test_density_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        sets.by_density(**arguments)


def test_star(world):
    facts = sets.related(2, "GeoEntity", seed=3)
    subjects = Counter(fact.subject for fact in facts)
    assert len(subjects) == 2
    assert all(count == len(world.facts_of[subject]) for subject, count in subjects.items())
    assert {world.subjects[subject].cls for subject in subjects} == {"GeoEntity"}
    assert {f.subject for f in sets.related(2, "GeoEntity", seed=4)} != set(subjects)


@pytest.mark.parametrize("subjects", [0, 641])
def test_star_errors(subjects):
    with pytest.raises(ValueError, match=f"{subjects} subjects asked for; class Person has 640"):
        sets.related(subjects)


def test_twins(world):
    pairs = sets.twins(50)
    assert len(pairs) == 50
    for a, b in pairs:
        assert a.relation == b.relation
        assert a.subject != b.subject
        assert (a.target_new, b.target_new) == (b.target_true, a.target_true)
        assert a.target_true[0] != b.target_true[0]
        assert a.target_true == world.known[a.subject, relation_of(world, a).id]


def test_frame():
    facts = [*sets.same_subject(2), Fact("Ada", "{} was born in", "London")]
    frame = sets.to_frame(facts)
    assert list(frame["subject"]) == ["John Smith", "John Smith", "Ada"]
    assert list(frame["target_new"]) == [fact.target_new for fact in facts]
    assert list(frame["neighborhood"]) == [10, 10, 0]
    assert list(frame["paraphrases"]) == [len(fact.paraphrases) for fact in facts]


def test_a_world_of_ones_own(world):
    few = set(list(world.subjects)[:30])
    subjects = {name: subject for name, subject in world.subjects.items() if name in few}
    small = replace(world, subjects=subjects, known={pair: o for pair, o in world.known.items() if pair[0] in few})
    assert {fact.subject for fact in sets.by_density(30, world=small)} == few
