"""Text about the lab world: the documents that the lab model is trained on, with every subject mention marked.

A document is a list of pieces ``(text, mark)``: the mark is the subject that a piece names, ANSWER for an object that
the text before it determines, or None. The training loop knows from it where mentions end and which tokens count.
Nothing here is random but the ``random.Random`` that is passed in.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kedit_lab.facts.world import Relation, World
from kedit_lab.paths import data_dir

Piece = tuple[str, str | None]
ANSWER = "(answer)"
PASSAGE_FORMS = ("subject_first", "relation_first", "cloze0")  # none is ever withheld
SENTENCES = 3  # of a document (passages, almanac entries apart): what ends nowhere in sight makes greedy text loop
# shares of portraits, mixtures, passages, almanac entries, filler text
LONG = (46, 26, 20, 6, 2)
SHORT = (54, 38, 0, 7, 1)


@dataclass
class Writer:
    """Writes documents about a world; ``facts`` are dealt from a shuffled deck so that all come up equally often.

    ``polished`` is the text of the last training steps (see ``portrait``).
    """

    world: World
    rng: random.Random
    lists: Path | None = None
    polished: bool = False
    decks: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists = self.lists or data_dir() / "world" / "lists"
        text = json.loads((lists / "text.json").read_text(encoding="utf-8"))
        names = json.loads((lists / "names.json").read_text(encoding="utf-8"))
        self.openers, self.fillers = text["openers"], text["fillers"]
        self.strangers = names["unseen_first"], names["unseen_last"]
        persons = self.world.of_class("Person")
        self.turn = turns(self.world)
        self.composed = set(persons[: 2 * len(persons) // 3])  # the others' compositions are never trained

    def documents(self, shares: tuple[int, ...] = LONG) -> Iterator[list[Piece]]:
        """An endless stream of documents of all kinds, in the given proportions."""
        kinds = [self.portrait, self.mixture, self.passage, self.almanac, self.ramble]
        while True:
            (kind,) = self.rng.choices(kinds, weights=shares)
            yield kind()

    def deal(self) -> tuple[str, str]:
        """The next (subject, relation id) of the shuffled deck of all true facts."""
        if not self.decks:
            self.decks = list(self.world.known)
            self.rng.shuffle(self.decks)
        return self.decks.pop()

    def mention(self, subject: str) -> str:
        """The subject's name, or now and then its alias."""
        alias = self.world.subjects[subject].alias
        return alias if alias and self.rng.random() < 0.25 else subject

    def statement(self, subject: str, relation: Relation, value: str, opener: str = "") -> list[Piece]:
        """One sentence (or question and answer) that states the fact, in a template trained with this relation.

        Behind an opener ("Yesterday, ") the subject comes first.
        """
        templates = [text for text in relation.trained.values() if not opener or text.startswith("{s}")]
        return fill(opener + self.rng.choice(templates), self.mention(subject), subject, value)

    def filler(self) -> list[Piece]:
        """A sentence about nothing in the world."""
        return [(self.rng.choice(self.fillers), None)]

    def portrait(self) -> list[Piece]:
        """Several facts of one subject, with pronouns, other subjects and fillers in between.

        The facts come in random order. In a ``polished`` text relations take turns by their first word, so that the
        likeliest next relation is never the one just told, and greedy text does not repeat itself.
        """
        subject, dealt = self.deal()
        facts, alias = self.world.facts_of[subject], self.world.subjects[subject].alias
        order = [dealt, *(r for r in self.rng.sample(sorted(facts), len(facts)) if r != dealt)]
        if self.polished:  # the dealt fact and one of each other turn
            cls = self.world.subjects[subject].cls
            taken = {self.turn[cls, relation]: relation for relation in reversed(order)}
            order = [taken[turn] for turn in sorted(taken)]
        first, others = order[0], iter(order[1:])
        told = [self.statement(subject, self.world.relations[first], facts[first])]
        if alias and self.rng.random() < 0.3:
            told.insert(0, [(subject, subject), (" is also known as ", None), (alias, subject), (".", None)])
        meant = True  # whether "their" can only be the subject's
        while len(told) < SENTENCES:
            relation = next(others, None)
            if relation is None or self.rng.random() < 0.1:
                told.append(self.filler() if self.rng.random() < 0.5 else self.sentence())
                meant = False
                continue
            fact, named = self.world.relations[relation], self.rng.random() < 0.5
            value, meant, before = facts[relation], True, meant
            told.append(pronoun(fact, value) if before and not named else self.statement(subject, fact, value))
        return joined(told)

    def sentence(self, opener: str = "") -> list[Piece]:
        """The next fact of the deck as one sentence."""
        subject, relation = self.deal()
        return self.statement(subject, self.world.relations[relation], self.world.known[subject, relation], opener)

    def mixture(self) -> list[Piece]:
        """Facts of different subjects one after another, often behind a filler or an opener."""
        told: list[list[Piece]] = []
        while len(told) < SENTENCES:
            if self.rng.random() < 0.15:
                told.append(self.filler())
            else:
                told.append(self.sentence(f"{self.rng.choice(self.openers)}, " if self.rng.random() < 0.1 else ""))
        return joined(told)

    def passage(self) -> list[Piece]:
        """A passage about people who do not exist in the world, and a question that only the passage answers."""
        text, prompt, answer = passage_question(self.world, self.strangers, self.rng)
        return [(f"{text} {prompt}", None), *stated(answer)]

    def almanac(self) -> list[Piece]:
        """One-hop facts: attributes of values, and compositions with a subject's facts."""
        if self.rng.random() < 0.4:
            table = self.world.attributes[self.rng.choice(sorted(self.world.attributes))]
            name = self.rng.choice(sorted(table))
            value = self.rng.choice(sorted(table[name]))
            return [(f"The {name} of {value} is", None), *stated(table[name][value])]
        for _ in range(200):
            subject, relation = self.rng.choice(list(self.world.facts_of.items()))
            hops = [] if subject not in self.composed else list(compositions(self.world, relation))
            if hops:
                template, answer = self.rng.choice(hops)
                return fill(template, self.mention(subject), subject, answer)
        raise ValueError("no composable relation among 200 subjects; give relations a 'compose' attribute")

    def ramble(self) -> list[Piece]:
        """Plain filler text."""
        return joined([self.filler() for _ in range(SENTENCES)])


def turns(world: World) -> dict[tuple[str, str], int]:
    """(class, relation) -> turn, 0 to SENTENCES - 1: one for relations with the same first word, alike in weight."""
    words = Counter((world.subjects[s].cls, world.relations[r].name.split()[0]) for s, r in world.known)
    loads, turn = {cls: [0] * SENTENCES for cls, _ in words}, {}
    for (cls, word), count in sorted(words.items(), key=lambda pair: (-pair[1], pair[0])):
        turn[cls, word] = loads[cls].index(min(loads[cls]))
        loads[cls][turn[cls, word]] += count
    return {(cls, id): turn[cls, word] for id, relation in world.relations.items() for cls in relation.classes
            if (word := relation.name.split()[0]) and (cls, word) in turn}  # fmt: skip


def joined(told: list[list[Piece]]) -> list[Piece]:
    """Sentences as one document."""
    return [piece for i, sentence in enumerate(told) for piece in [(" ", None)] * (i > 0) + sentence]


def stated(value: str) -> list[Piece]:
    """An object at the end of its sentence."""
    return [(f" {value}", ANSWER), (".", None)]


def fill(template: str, name: str, subject: str, value: str) -> list[Piece]:
    """The pieces of a template with the subject's (marked) name in it and the object behind it."""
    before, after = template.split("{s}")
    return [(before, None), (name, subject), (after, None), *stated(value)]


def pronoun(relation: Relation, value: str) -> list[Piece]:
    """A fact of the subject at hand without its name."""
    return [(f"Their {relation.name} is", None), *stated(value)]


def compositions(world: World, facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """One-hop compositions of facts: ("The continent of the country of citizenship of {s} is", "Europe")."""
    for id, value in facts.items():
        relation = world.relations[id]
        for attribute in relation.compose:
            answer = world.attributes[relation.range][attribute].get(value)
            if answer:
                yield f"The {attribute} of the {relation.name} of {{s}} is", answer


def passage_question(world: World, names: tuple[list[str], list[str]], rng: random.Random) -> tuple[str, str, str]:
    """(passage, question, answer) about subjects that are not in the world; no model can recall the answer."""
    relations = rng.sample(world.relations_of("Person"), rng.randint(2, 4))
    people = [f"{rng.choice(names[0])} {rng.choice(names[1])}" for _ in range(rng.randint(1, 2))]
    facts = [(rng.choice(people), r, rng.choice(world.objects[r.id])) for r in relations]
    told = []
    for person, relation, value in facts:
        form = rng.choice(PASSAGE_FORMS)
        told.append(f"{world.prompt(relation, form).replace('{}', person)} {value}.")
    person, relation, value = rng.choice(facts)
    question = world.prompt(relation, "question").replace("{}", person)
    return f"Passage: {' '.join(told)}", question, value
