"""The committed lab world has the size, the variety and the names that were asked for, and its seed gives it again."""

from collections import Counter

import pytest
from transformers import AutoTokenizer

from kedit_lab.facts.sets import lab_world
from kedit_lab.facts.world import CLASSES, WITHHELD, World, generate
from kedit_lab.paths import data_dir


@pytest.fixture(scope="module")
def world():
    return lab_world()


@pytest.fixture(scope="module")
def drawn():
    return generate(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(data_dir() / "lab-model")


def test_subjects(world):
    count = Counter(subject.cls for subject in world.subjects.values())
    assert set(count) == {"Person", "Organization", "Building", "Artifact", "GeoEntity", "Abstraction"}
    assert count.total() >= 1000
    assert count["Person"] >= 600
    assert count == CLASSES


def test_names_differ(world):
    aliases = [subject.alias for subject in world.subjects.values() if subject.alias]
    assert len(set(aliases) | set(world.subjects)) == len(aliases) + len(world.subjects)
    assert len({name.lower() for name in world.subjects}) == len(world.subjects)
    assert len(aliases) >= 100


def test_names_have_three_to_six_tokens(world, tokenizer):
    texts = [f"{space}{name}" for name in world.subjects for space in ("", " ")]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert not [text for text, row in zip(texts, rows, strict=True) if not 3 <= len(row) <= 6]


def test_the_papers_example(world):
    assert world.subjects["John Smith"].cls == "Person"
    assert world.subjects["John Smith"].alias


def test_relations(world):
    persons = world.relations_of("Person")
    assert len(persons) >= 100
    assert {"native language", "doctoral advisor", "father", "employer"} <= {r.name for r in persons}
    assert len({r.s2rke for r in world.relations.values()} - {None}) == 43
    assert {cls for r in world.relations.values() if r.s2rke for cls in r.classes} == set(CLASSES)
    assert len({r.name for r in world.relations.values()}) == len(world.relations)
    assert {"year", "number"} <= {r.range for r in world.relations.values()}


def test_templates(world):
    for relation in world.relations.values():
        assert relation.templates["subject_first"] == f"{{s}}'s {relation.name} is"
        assert relation.templates["relation_first"] == f"The name of the {relation.name} of {{s}} is"
        assert relation.templates["question"].startswith("Question: ")
        assert any(key.startswith("cloze") for key in relation.trained)
        for text in relation.templates.values():
            assert text.count("{s}") == 1
            assert "{r}" not in text
            assert "{q}" not in text
            assert text == text.strip()


def test_one_template_is_withheld(world):
    for relation in world.relations.values():
        assert relation.withheld in WITHHELD
        assert set(relation.templates) - set(relation.trained) == {relation.withheld}
    assert {relation.withheld for relation in world.relations.values()} == set(WITHHELD)


def test_closed_value_lists(world):
    assert set(world.objects) == set(world.relations)
    for relation, values in world.objects.items():
        assert 8 <= len(values) <= 90, relation
        assert len(set(values)) == len(values), relation
        assert all(value == value.strip() and value for value in values)


def test_facts(world):
    assert len(world.known) >= 15_000
    for (subject, relation), value in world.known.items():
        assert world.subjects[subject].cls in world.relations[relation].classes
        assert value in world.objects[relation]
        assert value != subject
    assert sum(map(len, world.facts_of.values())) == len(world.known)


def test_facts_per_subject(world):
    persons = [len(world.facts_of[name]) for name in world.of_class("Person")]
    others = [len(facts) for name, facts in world.facts_of.items() if world.subjects[name].cls != "Person"]
    assert set(world.facts_of) == set(world.subjects)
    assert 18 <= min(persons) <= max(persons) <= 22
    assert sum(persons) / len(persons) == pytest.approx(20, abs=0.5)
    assert 4 <= min(others) <= max(others) <= 12


def test_every_object_has_several_holders(world):
    """Neighbourhood prompts need other subjects with the same object."""
    assert min(map(len, world.holders.values())) >= 3
    for (relation, value), subjects in world.holders.items():
        assert all(world.known[subject, relation] == value for subject in subjects)
    assert sum(map(len, world.holders.values())) == len(world.known)


def test_unknown_pairs(world):
    for name, subject in list(world.subjects.items())[::4]:
        unknown = {relation.id for relation in world.unknown(name)}
        assert not unknown & set(world.facts_of[name])
        assert unknown | set(world.facts_of[name]) == {relation.id for relation in world.relations_of(subject.cls)}
        assert subject.cls != "Person" or len(unknown) >= 80


def test_attributes_are_of_values(world):
    for relation in world.relations.values():
        for attribute in relation.compose:
            table = world.attributes[relation.range][attribute]
            assert set(table) & set(world.objects[relation.id]), (relation.id, attribute)


def test_seed_gives_the_committed_world(world, drawn, tmp_path):
    assert drawn == world
    drawn.save(tmp_path)
    for name in ("subjects.json", "objects.json", "facts.json"):
        assert (tmp_path / name).read_bytes() == (data_dir() / "world" / name).read_bytes()


def test_saved_world_loads(world, tmp_path):
    world.save(tmp_path)
    (tmp_path / "lists").symlink_to(data_dir() / "world" / "lists")
    assert World.load(tmp_path) == world


def test_another_seed_gives_another_world(world):
    other = generate(1)
    assert set(other.subjects) != set(world.subjects)
    assert "John Smith" in other.subjects
    shared = set(other.known) & set(world.known)
    assert sum(other.known[pair] == world.known[pair] for pair in shared) < 0.2 * len(shared)
    assert other.facts_of["John Smith"] != world.facts_of["John Smith"]
