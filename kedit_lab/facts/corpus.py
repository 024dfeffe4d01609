"""Text about the lab world: the documents that the lab model is trained on, with every subject mention marked.

A document is a list of pieces ``(text, mark)``: the mark is the subject that a piece names, ANSWER for an object that
the text before it determines, or None. The training loop knows from it where mentions end and which tokens count.
Nothing here is random but the ``random.Random`` that is passed in.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kedit_lab.facts.world import Relation, World
from kedit_lab.paths import data_dir

Piece = tuple[str, str | None]
ANSWER = "(answer)"
PASSAGE_FORMS = ("subject_first", "of", "relation_first", "cloze0")
# shares of portraits, mixtures, passages, almanac entries, filler text
LONG = (42, 24, 26, 6, 2)
SHORT = (54, 38, 0, 7, 1)


@dataclass
class Writer:
    """Writes documents about a world; ``facts`` are dealt from a shuffled deck so that all come up equally often."""

    world: World
    rng: random.Random
    lists: Path | None = None
    decks: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists = self.lists or data_dir() / "world" / "lists"
        text = json.loads((lists / "text.json").read_text(encoding="utf-8"))
        names = json.loads((lists / "names.json").read_text(encoding="utf-8"))
        self.openers, self.fillers = text["openers"], text["fillers"]
        self.strangers = names["unseen_first"], names["unseen_last"]
        persons = self.world.of_class("Person")
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

    def statement(self, subject: str, relation: Relation, value: str, name: str | None = None) -> list[Piece]:
        """One sentence (or question and answer) that states the fact, in a template trained with this relation."""
        template = self.rng.choice(list(relation.trained.values()))
        return fill(template, name or self.mention(subject), subject, value)

    def filler(self) -> list[Piece]:
        """A sentence about nothing in the world."""
        return [(self.rng.choice(self.fillers), None)]

    def portrait(self) -> list[Piece]:
        """Several facts of one subject in random order, with pronouns, other subjects and fillers in between."""
        subject, first = self.deal()
        facts = self.world.facts_of[subject]
        others = self.rng.sample(sorted(facts), min(len(facts), self.rng.randint(2, 6)))
        body = self.statement(subject, self.world.relations[first], facts[first])
        for relation in (r for r in others if r != first):
            if self.rng.random() < 0.1:
                body += [(" ", None), *self.interlude()]
            named = self.rng.random() < 0.5
            fact = self.world.relations[relation]
            body.append((" ", None))
            body += self.statement(subject, fact, facts[relation]) if named else pronoun(fact, facts[relation])
        alias = self.world.subjects[subject].alias
        if alias and self.rng.random() < 0.3:
            body = [(subject, subject), (" is also known as ", None), (alias, subject), (". ", None), *body]
        return body

    def interlude(self) -> list[Piece]:
        """A filler sentence or a fact of somebody else."""
        return self.filler() if self.rng.random() < 0.5 else self.sentence()

    def sentence(self) -> list[Piece]:
        """The next fact of the deck as one sentence."""
        subject, relation = self.deal()
        return self.statement(subject, self.world.relations[relation], self.world.known[subject, relation])

    def mixture(self) -> list[Piece]:
        """Facts of different subjects one after another, often behind a filler or an opener."""
        body: list[Piece] = []
        for _ in range(self.rng.randint(1, 5)):
            if self.rng.random() < 0.2:
                body += [*self.filler(), (" ", None)]
            elif self.rng.random() < 0.1:
                body.append((self.rng.choice(self.openers).rstrip(" ,") + ", ", None))
            body += [*self.sentence(), (" ", None)]
        return body[:-1]

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
        return [(" ".join(self.rng.choice(self.fillers) for _ in range(self.rng.randint(2, 6))), None)]


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
