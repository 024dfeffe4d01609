"""The lab world: subjects, relations and facts that this project invents, and the prompts that ask for them.

``generate`` draws a world from the word lists in ``data/world/lists``; ``World.load`` reads the committed one.
Everything that the lab model can know, does not know, or has never been asked is known exactly from here.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kedit_lab.paths import data_dir, whole
from kedit_lab.types import SLOT

CLASSES = {"Person": 640, "Organization": 90, "Building": 80, "Artifact": 80, "GeoEntity": 110, "Abstraction": 80}
FACTS_PER_PERSON = (18, 22)
FACTS_PER_OTHER = (4, 12)
HOLDERS_PER_OBJECT = 8  # how many subjects share an object of a relation: neighbourhood prompts need them
ALIASED_SHARE = 0.15

SUBJECT_FIRST = "{s}'s {r} is"
RELATION_FIRST = "The name of the {r} of {s} is"
GENERIC = {
    "subject_first": SUBJECT_FIRST,
    "relation_first": RELATION_FIRST,
    "question": "Question: {q} Answer:",
    "of": "The {r} of {s} is",
    "as_for": "As for {s}, the {r} is",
    "asked": "Asked about the {r} of {s}, people say",
    "record": "The records of {s} give the {r} as",
}
WITHHELD = ("of", "as_for", "asked", "record")  # one of these per relation is never trained with it


@dataclass(frozen=True)
class Relation:
    """A relation of the world: its name in templates, the classes it applies to and the objects it may take."""

    id: str
    name: str
    classes: tuple[str, ...]
    range: str
    question: str
    cloze: tuple[str, ...]
    s2rke: str | None = None
    inverse: str | None = None
    compose: tuple[str, ...] = ()

    @cached_property
    def templates(self) -> dict[str, str]:
        """Template id -> prompt with ``{s}``, ending just before the object."""
        generic = {key: text.replace("{q}", self.question).replace("{r}", self.name) for key, text in GENERIC.items()}
        return generic | {f"cloze{i}": text for i, text in enumerate(self.cloze)}

    @cached_property
    def withheld(self) -> str:
        """The template id that the training text never combines with this relation."""
        return WITHHELD[random.Random(self.id).randrange(len(WITHHELD))]

    @property
    def trained(self) -> dict[str, str]:
        """The templates that the training text combines with this relation."""
        return {key: text for key, text in self.templates.items() if key != self.withheld}


@dataclass(frozen=True)
class Subject:
    """A thing that facts are about; ``alias`` is another name for it, or None."""

    name: str
    cls: str
    alias: str | None = None


@dataclass(frozen=True)
class World:
    """Subjects, relations, closed object lists, what is true (``known``), and facts about objects (``attributes``)."""

    subjects: dict[str, Subject]
    relations: dict[str, Relation]
    objects: dict[str, tuple[str, ...]]
    known: dict[tuple[str, str], str]
    attributes: dict[str, dict[str, dict[str, str]]]

    @classmethod
    def load(cls, folder: Path | None = None) -> "World":
        """The committed world (``data/world``), or one written by ``save`` elsewhere."""
        folder = folder or data_dir() / "world"
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        rows = read("facts.json")
        return cls(
            subjects={row["name"]: Subject(row["name"], row["class"], row["alias"]) for row in read("subjects.json")},
            relations=read_relations(folder / "lists"),
            objects={key: tuple(row) for key, row in read("objects.json").items()},
            known={(subject, relation): value for subject, relation, value in rows},
            attributes=read("lists/attributes.json"),
        )

    def save(self, folder: Path) -> None:
        """Write subjects, closed object lists and facts as JSON, one record a line."""
        lines(
            folder / "subjects.json",
            [{"name": s.name, "class": s.cls, "alias": s.alias} for s in self.subjects.values()],
        )
        lines(folder / "facts.json", [[s, r, o] for (s, r), o in self.known.items()])
        body = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in self.objects.items())
        with whole(folder / "objects.json") as temporary:
            temporary.write_text("{\n" + body + "\n}\n", encoding="utf-8")

    def of_class(self, cls: str) -> list[str]:
        """Names of all subjects of a class, in the order of the world."""
        return [name for name, subject in self.subjects.items() if subject.cls == cls]

    def relations_of(self, cls: str) -> list[Relation]:
        """All relations that apply to a class, known or not for a given subject."""
        return [relation for relation in self.relations.values() if cls in relation.classes]

    @cached_property
    def facts_of(self) -> dict[str, dict[str, str]]:
        """Subject -> {relation id: object}: all that is true of it."""
        table: dict[str, dict[str, str]] = defaultdict(dict)
        for (subject, relation), value in self.known.items():
            table[subject][relation] = value
        return dict(table)

    @cached_property
    def holders(self) -> dict[tuple[str, str], list[str]]:
        """(relation id, object) -> the subjects of which it is true."""
        table: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (subject, relation), value in self.known.items():
            table[relation, value].append(subject)
        return dict(table)

    @cached_property
    def answers(self) -> dict[str, list[str]]:
        """Relation id -> the objects of its closed list that are true of some subject, in the list's order."""
        return {id: [value for value in row if (id, value) in self.holders] for id, row in self.objects.items()}

    def unknown(self, subject: str) -> list[Relation]:
        """Relations that apply to the subject's class but of which the world says nothing for it."""
        known = self.facts_of.get(subject, {})
        return [r for r in self.relations_of(self.subjects[subject].cls) if r.id not in known]

    def prompt(self, relation: Relation, template: str, subject: str = SLOT) -> str:
        """A template of the relation with the subject (or a ``{}`` slot) filled in."""
        return relation.templates[template].replace("{s}", subject)


def lines(path: Path, rows: Iterable) -> None:
    """A JSON array with one record a line: small, and readable in a diff."""
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with whole(path) as temporary:
        temporary.write_text(f"[\n{body}\n]\n", encoding="utf-8")


def read_relations(folder: Path) -> dict[str, Relation]:
    """The relations of ``lists/relations.json``, by id."""
    rows = json.loads((folder / "relations.json").read_text(encoding="utf-8"))
    listed = ("classes", "cloze", "compose")
    return {row["id"]: Relation(**{k: tuple(v or ()) if k in listed else v for k, v in row.items()}) for row in rows}


def generate(seed: int = 0, lists: Path | None = None) -> World:
    """Draw a world: subjects from name parts, closed object lists per relation, and who knows what."""
    lists = lists or data_dir() / "world" / "lists"
    rng = random.Random(seed)
    names = json.loads((lists / "names.json").read_text(encoding="utf-8"))
    values = json.loads((lists / "values.json").read_text(encoding="utf-8"))
    relations = read_relations(lists)
    subjects = {s.name: s for s in draw_subjects(names, rng)}
    by_class = {cls: [s.name for s in subjects.values() if s.cls == cls] for cls in CLASSES}
    asked = {name: draw_relations(subject, relations, rng) for name, subject in subjects.items()}
    count = defaultdict(int)
    for chosen in asked.values():
        for relation in chosen:
            count[relation] += 1
    objects = {r.id: draw_objects(r, values, by_class, rng) for r in relations.values()}
    decks = {r: deck(objects[r], count[r], rng) for r in relations}
    known = {}
    for name, chosen in asked.items():
        for relation in chosen:
            known[name, relation] = next(value for value in decks[relation] if value != name)
            decks[relation].remove(known[name, relation])
    attributes = json.loads((lists / "attributes.json").read_text(encoding="utf-8"))
    return World(subjects, relations, objects, known, attributes)


def draw_subjects(names: dict, rng: random.Random) -> Iterator[Subject]:
    """John Smith first, then distinct names of every class; some get an alias."""
    avoid = set(names["avoid"])  # names that the tokenizer would split into fewer than 3 or more than 6 pieces
    nicknames = rng.sample(names["nicknames"], len(names["nicknames"]))
    pools = {"Person": (names["first"], names["last"])}
    pools |= {cls: (names[cls]["head"], names[cls]["tail"]) for cls in CLASSES if cls != "Person"}
    for cls, size in CLASSES.items():
        pairs = [f"{head} {tail}" for head in pools[cls][0] for tail in pools[cls][1]]
        rng.shuffle(pairs)
        pairs = [pair for pair in pairs if pair not in avoid]
        if cls == "Person":
            pairs.remove("John Smith")
            pairs.insert(0, "John Smith")
        for i, name in enumerate(pairs[:size]):
            aliased = nicknames and (name == "John Smith" or rng.random() < ALIASED_SHARE)
            yield Subject(name, cls, nicknames.pop() if aliased else None)
            if i + 1 == size:
                break
        else:
            raise ValueError(f"{len(pairs)} distinct names for {size} subjects of {cls}; add name parts")


def draw_relations(subject: Subject, relations: dict[str, Relation], rng: random.Random) -> list[str]:
    """Which relations the world answers for a subject: a documented subset of those that apply."""
    apply = [r.id for r in relations.values() if subject.cls in r.classes]
    low, high = FACTS_PER_PERSON if subject.cls == "Person" else FACTS_PER_OTHER
    return rng.sample(apply, min(len(apply), rng.randint(low, high)))


def draw_objects(relation: Relation, values: dict, by_class: dict, rng: random.Random) -> tuple[str, ...]:
    """The closed list of objects of a relation: a value list, a set of years or numbers, or names of subjects."""
    if relation.range == "year":
        return tuple(map(str, sorted(rng.sample(range(1700, 2021), 40))))
    if relation.range == "number":
        return tuple(map(str, sorted(rng.sample(range(2, 1000), 40))))
    if relation.range.startswith("@"):
        return tuple(rng.sample(by_class[relation.range[1:]], 60))
    return tuple(values[relation.range])


def deck(objects: tuple[str, ...], draws: int, rng: random.Random) -> list[str]:
    """Objects to deal: each one in use goes to about HOLDERS_PER_OBJECT subjects; behind them lies a spare of each."""
    used = rng.sample(objects, max(1, min(len(objects), draws // HOLDERS_PER_OBJECT)))
    dealt = [used[i % len(used)] for i in range(draws)]
    rng.shuffle(dealt)
    return dealt + used + rng.sample(objects, 2)
