"""Documents about the world: true, marked, varied, and silent about what the model must not have seen."""

import random
import re
from collections import Counter
from itertools import islice

import pytest

from kedit_lab.facts.corpus import ANSWER, LONG, SHORT, Writer, compositions, passage_question, turns
from kedit_lab.facts.sets import lab_world

DOCUMENTS = 3000


@pytest.fixture(scope="module")
def world():
    return lab_world()


@pytest.fixture(scope="module")
def documents(world):
    return list(islice(Writer(world, random.Random(3)).documents(), DOCUMENTS))


def text_of(pieces):
    return "".join(text for text, _ in pieces)


@pytest.fixture(scope="module")
def mentions(documents):
    """(text before, name, subject, text behind) of every marked subject mention."""
    found = []
    for pieces in documents:
        text, at = text_of(pieces), 0
        for name, mark in pieces:
            if mark not in (None, ANSWER):
                found.append((text[:at], name, mark, text[at + len(name) :]))
            at += len(name)
    return found


def test_marks_are_names(world, mentions):
    assert len(mentions) > 1.2 * DOCUMENTS
    aliases = 0
    for _, name, subject, _ in mentions:
        assert name in (subject, world.subjects[subject].alias)
        aliases += name != subject
    assert aliases > 100


def test_every_sentence_about_a_subject_is_true(world, mentions):
    """Behind a mention stands the true object of a relation in one of its trained templates, or an attribute of one."""
    known = Counter()
    for before, _, subject, behind in mentions:
        facts = world.facts_of[subject]
        said = {
            (text, value) for relation, value in facts.items() for text in world.relations[relation].trained.values()
        }
        said |= set(compositions(world, facts))
        if behind.startswith((" is also known as ", ". ")):
            continue  # an alias is introduced
        halves = [(*text.split("{s}"), value) for text, value in said]
        known[any(before.endswith(a) and behind.startswith(f"{b} {value}.") for a, b, value in halves)] += 1
    assert known[True] > 1.5 * DOCUMENTS
    assert not known[False]


def test_withheld_templates_are_never_written(world, mentions, documents):
    held = [relation.templates[relation.withheld].split("{s}") for relation in world.relations.values()]
    strangers = [text for text in map(text_of, documents) if text.startswith("Passage: ")]
    patterns = [f"{re.escape(a)}[^.?:]+{re.escape(b)} " for a, b in held]
    assert not any(re.search(pattern, text) for pattern in patterns for text in strangers)
    for before, name, _, behind in mentions:
        for a, b in held:
            assert not (before.endswith(a) and behind.startswith(b)), before[-40:] + name + behind[:40]


def test_answers_are_marked(world, documents):
    values = {value for row in world.objects.values() for value in row}
    values |= {value for tables in world.attributes.values() for table in tables.values() for value in table.values()}
    marked = [(i, j) for i, pieces in enumerate(documents) for j, (_, mark) in enumerate(pieces) if mark == ANSWER]
    assert len(marked) > 1.5 * DOCUMENTS
    for i, j in marked:
        text = documents[i][j][0]
        assert text[0] == " "
        assert text[1:] in values
        assert documents[i][j + 1] == (".", None)


def test_kinds_of_documents(world, documents):
    texts = list(map(text_of, documents))
    share = lambda test: sum(map(test, texts)) / DOCUMENTS  # noqa: E731
    assert share(lambda t: t.startswith("Passage: ")) == pytest.approx(LONG[2] / sum(LONG), abs=0.03)
    assert share(lambda t: "Their " in t) > 0.1
    assert share(lambda t: "Question: " in t) > 0.2
    assert share(lambda t: " is also known as " in t) > 0.005
    subjects = [{mark for _, mark in pieces} - {None, ANSWER} for pieces in documents]
    assert sum(len(marks) > 1 for marks in subjects) > 0.2 * DOCUMENTS
    assert sum(not marks and ANSWER not in {m for _, m in d} for marks, d in zip(subjects, documents, strict=True)) > 20
    assert all(text == text.strip() and "{" not in text and "  " not in text for text in texts)
    assert len(set(texts)) > 0.95 * DOCUMENTS


def test_documents_without_passages(world):
    texts = map(text_of, islice(Writer(world, random.Random(3)).documents(SHORT), 300))
    assert not any(text.startswith("Passage: ") for text in texts)


def test_all_facts_come_up_equally_often(world):
    writer = Writer(world, random.Random(1))
    dealt = [writer.deal() for _ in range(2 * len(world.known))]
    assert set(Counter(dealt).values()) == {2}
    assert set(dealt) == set(world.known)
    assert dealt[: len(world.known)] != dealt[len(world.known) :]


def test_same_seed_same_text(world, documents):
    again = list(islice(Writer(world, random.Random(3)).documents(), 50))
    assert again == documents[:50]
    assert list(islice(Writer(world, random.Random(4)).documents(), 50)) != again


def test_passages_are_about_strangers_and_hold_their_answer(world):
    writer, rng = Writer(world, random.Random(0)), random.Random(5)
    names = [f"{a} {b}" for a in writer.strangers[0] for b in writer.strangers[1]]
    aliases = {subject.alias for subject in world.subjects.values()}
    assert not set(names) & (set(world.subjects) | aliases)
    for _ in range(500):
        passage, question, answer = passage_question(world, writer.strangers, rng)
        assert f" {answer}." in passage
        assert question.startswith("Question: ")
        assert question.endswith("Answer:")
        assert any(name in question and name in passage for name in names)
        assert not any(name in question for name in world.subjects)


def test_compositions_of_a_third_of_the_persons_are_never_written(world, mentions):
    writer = Writer(world, random.Random(0))
    persons = world.of_class("Person")
    assert 0 < len(writer.composed) < 0.7 * len(persons)
    composed = 0
    for before, _, subject, behind in mentions:
        hops = [text.split("{s}") for text, _ in compositions(world, world.facts_of[subject])]
        if any(before.endswith(a) and behind.startswith(b) for a, b in hops):
            assert subject in writer.composed
            composed += 1
    assert composed > 30


def test_documents_end_where_expected(world):
    """Three sentences each, passages and almanac entries apart; "their" is nobody else's."""
    writer = Writer(world, random.Random(9))
    for _ in range(500):
        portrait, mixture = writer.portrait(), writer.mixture()
        for pieces in (portrait, mixture, writer.ramble()):
            assert sum(text.rstrip().endswith(".") for text, mark in pieces if mark is None) == 3, pieces
        spoken = None
        for text, mark in portrait:
            if text.startswith("Their "):
                assert spoken == portrait_subject(portrait)
            if mark not in (None, ANSWER):
                spoken = mark


def portrait_subject(pieces):
    return next(mark for _, mark in pieces if mark not in (None, ANSWER))


def test_relations_take_turns_in_polished_text(world):
    """The mode of the relation behind another is never that relation: greedy text need not repeat itself."""
    turn = turns(world)
    for cls in ("Person", "Organization", "Building", "GeoEntity"):
        weight = Counter(turn[cls, r] for s, r in world.known if world.subjects[s].cls == cls)
        assert max(weight.values()) < 2 * min(weight.values())
    name = {world.relations[id].name: at for (cls, id), at in turn.items() if cls == "Person"}
    persons = set(world.of_class("Person"))
    for polished in (False, True):
        writer = Writer(world, random.Random(9), polished=polished)
        portraits = [p for p in (writer.portrait() for _ in range(500)) if portrait_subject(p) in persons]
        told = [[text[6:-3] for text, _ in portrait if text.startswith("Their ")] for portrait in portraits]
        pairs = [(name[row[-2]], name[row[-1]]) for row in told if len(row) > 1]
        assert len(pairs) > 20
        assert all(a < b for a, b in pairs) == polished
