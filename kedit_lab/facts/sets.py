"""Sets of facts to edit: one subject or many, by density, in S2RKE's star form. Seeded, over the committed world."""

import random
from collections.abc import Iterable, Sequence
from functools import cache
from numbers import Integral
from typing import Any

import pandas as pd

from kedit_lab.facts.corpus import compositions
from kedit_lab.facts.world import Relation, World
from kedit_lab.types import Fact, Probe

PARAPHRASES = 3
NEIGHBORS = 10
LITERALS = ("year", "number")


def counted(**counts: Any) -> None:
    """Raise a ValueError for a count that is no whole number."""
    for name, seen in counts.items():
        if not isinstance(seen, Integral):
            raise ValueError(f"{name} is {seen!r}; give a whole number")


@cache
def lab_world() -> World:
    """The committed lab world, read once."""
    return World.load()


def make_fact(world: World, subject: str, relation: Relation, target: str, rng: random.Random,
              template: str = "subject_first") -> Fact:  # fmt: skip
    """The edit "subject's relation is target" with its paraphrases, neighbourhood and portability prompts."""
    trained = [key for key in relation.trained if key not in (template, "question")]
    chosen = ["relation_first", *rng.sample([key for key in trained if key != "relation_first"], PARAPHRASES - 1)]
    true = world.known.get((subject, relation.id))
    return Fact(
        subject=subject,
        prompt=world.prompt(relation, template),
        target_new=target,
        target_true=true,
        relation=relation.name,
        paraphrases=tuple(world.prompt(relation, key, subject) for key in chosen if key != template),
        neighborhood=neighbors(world, subject, relation, true, target, rng),
        portability=consequences(world, subject, relation, target),
    )


def neighbors(world: World, subject: str, relation: Relation, true: str | None, target: str,
              rng: random.Random) -> tuple[Probe, ...]:  # fmt: skip
    """Prompts about other subjects with the same true object (any other object if the subject knows none)."""
    others = [s for s, r in world.known if r == relation.id] if true is None else world.holders[relation.id, true]
    others = [s for s in others if s != subject and world.known[s, relation.id] != target]
    rng.shuffle(others)
    templates = ["subject_first", *(key for key in relation.trained if key not in ("subject_first", "question"))]
    asked = [(other, key) for key in templates for other in others][:NEIGHBORS]
    return tuple(
        Probe(world.prompt(relation, key, other), world.known[other, relation.id], "neighbor") for other, key in asked
    )


def consequences(world: World, subject: str, relation: Relation, target: str) -> tuple[Probe, ...]:
    """What follows from the edit: the alias's answer, the inverse relation, one-hop compositions."""
    probes = []
    alias = world.subjects[subject].alias
    if alias:
        probes.append(Probe(world.prompt(relation, "subject_first", alias), target, "alias"))
    if relation.inverse:
        probes.append(Probe(relation.inverse.replace("{o}", target), subject, "inverse"))
    for template, answer in compositions(world, {relation.id: target}):
        probes.append(Probe(template.replace("{s}", subject), answer, "composition"))
    return tuple(probes)


def distinct_objects(
    world: World, count: int, rng: random.Random, one: str, many: Sequence[str]
) -> list[tuple[Relation, str]]:
    """A target for each of some person relations, held neither by ``one`` nor by its counterpart in ``many``.

    Objects are words, as in the paper's sets; years and numbers are left to the other sets.
    """
    relations = [r for r in world.relations_of("Person") if r.range not in LITERALS]
    if not 1 <= count <= min(100, len(relations)):
        raise ValueError(f"{count} facts asked for; give a number from 1 to {min(100, len(relations))}")
    plan, used = [], set()
    for relation, other in zip(rng.sample(relations, count), many, strict=True):
        taken = {world.known.get((subject, relation.id)) for subject in (one, other)} | {one, *many}
        options = [o for o in world.answers[relation.id] if o not in taken]
        target = rng.choice([o for o in options if o not in used] or options)
        used.add(target)
        plan.append((relation, target))
    return plan


def pair_of_sets(count: int, seed: int, world: World) -> tuple[list[Fact], list[Fact]]:
    """The same relations and targets asked of one subject, and of as many subjects as there are facts."""
    counted(n=count)
    rng = random.Random(f"subjects {seed}")
    persons = world.of_class("Person")
    one = "John Smith" if seed == 0 else rng.choice(persons)
    many = rng.sample([p for p in persons if p != one], 100)[:count]
    plan = distinct_objects(world, count, random.Random(f"plan {seed}"), one, many)
    dice = lambda relation: random.Random(f"prompts {seed} {relation.id}")  # noqa: E731 - the same paraphrases in both
    same = [make_fact(world, one, r, target, dice(r)) for r, target in plan]
    distinct = [make_fact(world, s, r, target, dice(r)) for s, (r, target) in zip(many, plan, strict=True)]
    return same, distinct


def same_subject(n: int, seed: int = 0, world: World | None = None) -> list[Fact]:
    """``n`` (1 to 100) facts about one person: "John Smith's {relation} is {object}" (MEMIT-Merge, appendix A).

    Seed 0 is John Smith; another seed gives another person, other relations and targets. Where the world knows nothing
    of the pair, ``target_true`` is None. Raises ValueError for another ``n``.
    """
    return pair_of_sets(n, seed, world or lab_world())[0]


def distinct_subject(n: int, seed: int = 0, world: World | None = None) -> list[Fact]:
    """The same relations and target objects as ``same_subject(n, seed)``, each asked of another person; raises
    ValueError alike."""
    return pair_of_sets(n, seed, world or lab_world())[1]


def known_facts(world: World, subject: str, count: int | None, rng: random.Random) -> list[Fact]:
    """Edits of ``count`` (or all) facts that the model knows of a subject, each to another object of its relation."""
    relations = list(world.facts_of[subject])
    return [
        known_fact(world, subject, id, rng) for id in rng.sample(relations, len(relations) if count is None else count)
    ]


def known_fact(world: World, subject: str, relation: str, rng: random.Random) -> Fact:
    """An edit of a fact that the model knows to another object of its relation."""
    true = world.known[subject, relation]
    target = rng.choice([o for o in world.answers[relation] if o not in (true, subject)])
    return make_fact(world, subject, world.relations[relation], target, rng)


def by_density(
    n: int, per_subject: int = 1, seed: int = 0, cls: str = "Person", world: World | None = None
) -> list[Fact]:
    """``n`` edits of facts that the model knows, ``per_subject`` of them for each subject (S2RKE's subject density).

    Each has ``target_true`` and a different ``target_new``. The last subject has fewer when n is no multiple.
    Raises ValueError for counts under 1, an unknown class, and where it has too few subjects with so many facts.
    """
    counted(n=n, per_subject=per_subject)
    world = world or lab_world()
    if n < 1 or per_subject < 1:
        raise ValueError(f"n is {n} and per_subject is {per_subject}; both must be at least 1")
    rng = random.Random(f"density {seed}")
    able = [s for s in subjects_of(world, cls) if len(world.facts_of[s]) >= per_subject]
    needed = -(-n // per_subject)
    if needed > len(able):
        raise ValueError(f"{needed} subjects of class {cls} with {per_subject} facts are needed; there are {len(able)}")
    facts = [fact for s in rng.sample(able, needed) for fact in known_facts(world, s, per_subject, rng)]
    return facts[:n]


def at_random(n: int, seed: int = 0, cls: str = "Person", world: World | None = None) -> list[Fact]:
    """``n`` edits drawn from all facts that the model knows of a class: a subject comes back as chance has it."""
    counted(n=n)
    world = world or lab_world()
    rng = random.Random(f"random {seed}")
    known = [(subject, relation) for subject in subjects_of(world, cls) for relation in world.facts_of[subject]]
    if not 1 <= n <= len(known):
        raise ValueError(f"n is {n}; {len(known)} facts are known of class {cls}")
    return [known_fact(world, subject, relation, rng) for subject, relation in rng.sample(known, n)]


def related(subjects: int = 1, cls: str = "Person", seed: int = 0, world: World | None = None) -> list[Fact]:
    """S2RKE's star form: for each of some subjects of a class, an edit of every fact that is known of it."""
    counted(subjects=subjects)
    world = world or lab_world()
    rng = random.Random(f"star {seed}")
    names = subjects_of(world, cls)
    if not 1 <= subjects <= len(names):
        raise ValueError(f"{subjects} subjects asked for; class {cls} has {len(names)}")
    return [fact for s in rng.sample(names, subjects) for fact in known_facts(world, s, None, rng)]


def pair(
    n: int, homogeneous: bool = True, seed: int = 0, cls: str = "Person", world: World | None = None
) -> list[Fact]:
    """``n`` edits about different subjects, but that the first and the last share theirs if ``homogeneous`` (S2RKE).

    All but the last are the same with either setting.
    """
    counted(n=n)
    if n < 2:
        raise ValueError(f"n is {n}; a first and a last edit make at least 2")
    world = world or lab_world()
    first, *others = by_density(n, 1, seed, cls, world)
    if not homogeneous:
        return [first, *others]
    rng = random.Random(f"pair {seed}")
    again = [f for f in known_facts(world, first.subject, None, rng) if f.relation != first.relation]
    if not again:
        raise ValueError(f"{first.subject} has one fact only; ask for another seed or class")
    return [first, *others[:-1], again[0]]


def subjects_of(world: World, cls: str) -> list[str]:
    """The subjects of a class, or a ValueError that lists the classes."""
    names = world.of_class(cls)
    if not names:
        classes = sorted({s.cls for s in world.subjects.values()})
        raise ValueError(f"unknown class {cls!r}; the classes are {', '.join(classes)}")
    return names


def to_frame(facts: Iterable[Fact]) -> pd.DataFrame:
    """Facts as a table, one row each; prompts that come in tuples are counted."""
    return pd.DataFrame(
        [{key: len(part) if isinstance(part, tuple) else part for key, part in vars(fact).items()} for fact in facts]
    )


def twins(n: int, seed: int = 0, cls: str = "Person", world: World | None = None) -> list[tuple[Fact, Fact]]:
    """``n`` pairs of known facts of one relation about two subjects with different objects (for ``interchange``).

    Each fact's ``target_new`` is the other's ``target_true``.
    """
    counted(n=n)
    world = world or lab_world()
    rng = random.Random(f"twins {seed}")
    names = set(subjects_of(world, cls))
    by_relation: dict[str, list[str]] = {}
    for subject, relation in world.known:
        if subject in names:
            by_relation.setdefault(relation, []).append(subject)
    worded = {id for id, relation in world.relations.items() if relation.range not in LITERALS}
    initials = {r: {world.known[s, r][0] for s in holders} for r, holders in by_relation.items() if r in worded}
    able = sorted(r for r, letters in initials.items() if len(letters) > 1)
    pairs: list[tuple[Fact, Fact]] = []
    for _ in range(1000 * n):
        if len(pairs) == n:
            return pairs
        relation = rng.choice(able)
        a, b = rng.sample(by_relation[relation], 2)
        first, second = world.known[a, relation], world.known[b, relation]
        if first[0] != second[0] and a != second and b != first:  # different first letters: different first tokens
            known = world.relations[relation]
            pairs.append((make_fact(world, a, known, second, rng), make_fact(world, b, known, first, rng)))
    raise ValueError(f"the world has too few subjects of class {cls} with different objects for {n} pairs of twins")
