"""Which edits of a published set can be made: every one is checked, and what is dropped is kept with its reason."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pandas as pd

from kedit_lab.facts.sets import to_frame
from kedit_lab.types import SLOT, Fact

CONFLICTS = ("first", "last", "keep")
SEVERAL = ("drop", "first", "last")
Unit = list[Fact | None]  # the facts of one record; None where a later record took a fact's place


class Unfit(ValueError):
    """Why an edit cannot be made: a ``reason`` to count by and a ``detail`` to read."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Dropped(NamedTuple):
    """An edit that was left out: the number of its record, its subject, why, and what was seen."""

    record: int
    subject: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Validation:
    """What came of a file: ``records`` read, ``found`` edits in them, ``kept`` ones, and every one ``dropped``.

    ``left`` edits are fit but beyond the limit; ``skipped`` counts prompts without an answer, ``changed`` locality
    prompts of a case whose answer another case's edit changes, which are left out; ``complete`` says whether the file
    was read to its end. ``found = kept + left + len(dropped)``.
    """

    source: str
    sha256: str
    records: int
    found: int
    kept: int
    left: int
    skipped: int
    complete: bool
    dropped: tuple[Dropped, ...] = field(default=(), repr=False)
    changed: int = 0

    def counts(self) -> pd.Series:
        """How many edits were dropped for each reason, most frequent first."""
        tally = Counter(row.reason for row in self.dropped).most_common()
        return pd.Series(dict(tally), name="dropped", dtype=int)

    def to_frame(self) -> pd.DataFrame:
        """Every dropped edit: ``record``, ``subject``, ``reason``, ``detail``."""
        return pd.DataFrame(self.dropped, columns=list(Dropped._fields))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
        parts = [
            f"{self.source}: {self.records} records read{'' if self.complete else ' (the rest was not needed)'}",
            f"{self.found} edits found, {self.kept} kept",
            f"{len(self.dropped)} dropped" + (f" ({reasons})" if reasons else ""),
        ]
        parts += [f"{self.left} beyond the limit"] if self.left else []
        parts += [f"{self.skipped} prompts without an answer skipped"] if self.skipped else []
        parts += [f"{self.changed} locality prompts that another edit changes left out"] if self.changed else []
        return "; ".join(parts)


class FactList(list[Fact]):
    """The facts of a published set, in order, with the ``report`` of how they were read. A slice is a plain list."""

    def __init__(self, facts: Sequence[Fact], report: Validation) -> None:
        super().__init__(facts)
        self.report = report

    def summary(self) -> str:
        """One line: facts, subjects, relations, and how many facts a subject has."""
        per = Counter(fact.subject for fact in self).values()
        relations = len({fact.relation for fact in self if fact.relation})
        line = f"{len(self)} facts: {len(per)} subjects, {relations or 'no named'} relations"
        return line + (f", {len(self) / len(per):.1f} facts per subject ({min(per)} to {max(per)})" if per else "")

    def to_frame(self) -> pd.DataFrame:
        """One row per fact; prompts that come in tuples are counted."""
        return to_frame(self)

    def __repr__(self) -> str:
        return f"FactList({self.summary()}; {len(self.report.dropped)} dropped)"


def mentions(text: str, name: str) -> list[int]:
    """Where a name stands in a text as whole words: "Art" is not in "Arthur", but it is in "Art's"."""
    starts, at = [], text.find(name)
    while at >= 0:
        if not (glued(text[at - 1 : at], name[:1]) or glued(name[-1:], text[at + len(name) :][:1])):
            starts.append(at)
        at = text.find(name, at + 1)
    return starts


def glued(left: str, right: str) -> bool:
    """Whether two neighbouring characters, or "" at an edge, belong to one word (ASCII, as in ``Fact``)."""
    return all(char.isascii() and (char.isalnum() or char == "_") for char in (left, right))


def template(prompt: str, subject: str, filled: bool, several: str) -> str:
    """The prompt with one ``{}`` for the subject. ``filled`` prompts name the subject itself; others have a slot.

    Raises Unfit where the subject is missing, or stands there several times and ``several`` is "drop"; "first" and
    "last" choose one mention and leave the others as text.
    """
    if filled or SLOT not in prompt:
        if SLOT in prompt:
            raise Unfit("braces in the prompt", repr(prompt))
        starts, width = mentions(prompt, subject), len(subject)
    else:
        starts = [at for at in range(len(prompt)) if prompt.startswith(SLOT, at)]
        width = len(SLOT)
    if not starts:
        raise Unfit("subject missing in the prompt", f"{subject!r} in {prompt!r}")
    if len(starts) > 1 and several == "drop":
        raise Unfit("subject several times in the prompt", f"{subject!r} in {prompt!r}")
    at = starts[-1 if several == "last" else 0]
    before, behind = prompt[:at], prompt[at + width :]
    if width == len(SLOT) and not filled:
        before, behind = before.replace(SLOT, subject), behind.replace(SLOT, subject)
    return before + SLOT + behind


def checked(draft: dict[str, Any], several: str) -> Fact:
    """The Fact of a draft (a Fact's fields, and ``filled``), or Unfit with the reason why there can be none."""
    names = ("subject", "prompt", "target_new")
    subject, prompt, target = (draft[name].strip() for name in names)
    for name, text in zip(names, (subject, prompt, target), strict=True):
        if not text:
            raise Unfit(f"empty {name}", repr(draft[name]))
    true = (draft.get("target_true") or "").strip() or None
    if true == target:
        raise Unfit("identical targets", repr(target))
    worded = template(prompt, subject, draft["filled"], several)
    fields = {key: part for key, part in draft.items() if key != "filled"}
    try:
        return Fact(**fields | {"subject": subject, "prompt": worded, "target_new": target, "target_true": true})
    except ValueError as error:
        raise Unfit("prompt that cannot be asked", str(error)) from error


class Collector:
    """Takes the edits of each record, keeps those that are fit and new, and remembers why others are not.

    Two edits are of one fact if subject and relation agree (or the prompt, where the set names no relation). With the
    same object the later one is a duplicate; with another it conflicts: ``conflicts`` keeps the "first", the "last",
    or ("keep") both. ``joint`` records are kept or dropped as a whole, and a duplicate's probes join the first's, where
    its whole record is taken.
    """

    def __init__(self, conflicts: str = "first", several: str = "drop", joint: bool = False) -> None:
        self.conflicts, self.several, self.joint = conflicts, several, joint
        self.units: list[Unit] = []
        self.seen: dict[tuple[str, str], dict[str, tuple[int, Unit, int]]] = {}  # by target: record, and place
        self.dropped: list[Dropped] = []
        self.found = self.kept = 0

    def add(self, number: int, drafts: Sequence[dict[str, Any]]) -> None:
        """Take a record's edits."""
        self.found += len(drafts)
        unit: Unit = []
        if self.joint and not self.possible(number, drafts):
            return
        for draft in drafts:
            try:
                self.place(number, checked(draft, self.several), unit)
            except Unfit as unfit:
                self.drop(number, draft["subject"], unfit)
        self.units.append(unit)

    def possible(self, number: int, drafts: Sequence[dict[str, Any]]) -> bool:
        """Whether all edits of a joint record can be made; if not, all are dropped."""
        wrong: dict[int, Unfit] = {}
        own: dict[tuple[str, str], str] = {}
        for i, draft in enumerate(drafts):
            try:
                fact = checked(draft, self.several)
                key = key_of(fact)
                known = next(iter(self.seen.get(key, {})), None) or own.setdefault(key, fact.target_new)
                if self.conflicts != "keep" and known != fact.target_new:
                    raise Unfit("conflict", f"an earlier edit asks for {known!r}, this one for {fact.target_new!r}")
            except Unfit as unfit:
                wrong[i] = unfit
        for i, draft in enumerate(drafts if wrong else ()):
            with_it = Unfit("edit of a dropped case", "another edit of its case cannot be made")
            self.drop(number, draft["subject"], wrong.get(i, with_it))
        return not wrong

    def drop(self, number: int, subject: str, why: Unfit) -> None:
        """Remember an edit that is left out."""
        self.dropped.append(Dropped(number, subject, why.reason, why.detail))

    def place(self, number: int, fact: Fact, unit: Unit) -> None:
        """Put a fact behind the others of its record, unless it was seen before."""
        known = self.seen.setdefault(key_of(fact), {})
        if fact.target_new in known:
            if self.joint:
                unit.append(fact)  # its record needs it too
            raise Unfit("duplicate", f"record {known[fact.target_new][0]} asks for {fact.target_new!r} too")
        for target, (record, home, at) in [*known.items()] if self.conflicts != "keep" else []:
            if self.conflicts == "first":
                raise Unfit("conflict", f"record {record} asks for {target!r}, this one for {fact.target_new!r}")
            said = Unfit("conflict", f"record {number} asks for {fact.target_new!r}, this one for {target!r}")
            self.drop(record, fact.subject, said)
            home[at] = None
            self.kept -= 1
            del known[target]
        known[fact.target_new] = number, unit, len(unit)
        unit.append(fact)
        self.kept += 1

    def facts(self, limit: int | None, seed: int | None) -> list[Fact]:
        """The first ``limit`` facts in order, or of the records shuffled by ``seed``; joint records whole."""
        units = [[fact for fact in unit if fact is not None] for unit in self.units]
        if seed is not None:
            random.Random(seed).shuffle(units)
        taken: dict[tuple[str, str, str], Fact] = {}
        for unit in units:
            names = [(*key_of(fact), fact.target_new) for fact in unit]
            new = sum(name not in taken for name in set(names))
            over = 0 if limit is None else max(0, len(taken) + new - limit)
            if over and self.joint:
                break
            for name, fact in list(zip(names, unit, strict=True))[: len(unit) - over]:
                taken[name] = joined(taken[name], fact) if name in taken else fact
        return list(taken.values())


def consistent(facts: Sequence[Fact]) -> tuple[list[Fact], int]:
    """(facts, how many probes are gone): without locality probes whose answer one of the edits changes."""
    asked = {fact.text: fact.target_new for fact in facts}
    kept = [tuple(p for p in fact.locality if asked.get(p.prompt, p.answer) in (p.answer, *p.aliases))
            for fact in facts]  # fmt: skip
    gone = sum(len(fact.locality) for fact in facts) - sum(map(len, kept))
    return [replace(fact, locality=probes) for fact, probes in zip(facts, kept, strict=True)], gone


def key_of(fact: Fact) -> tuple[str, str]:
    """What two edits of one fact have in common."""
    return fact.subject, fact.relation or fact.prompt


def joined(first: Fact, again: Fact) -> Fact:
    """A fact with the probes that a second record of it brings."""
    probes = {name: tuple(dict.fromkeys(getattr(first, name) + getattr(again, name)))
              for name in ("paraphrases", "portability", "locality")}  # fmt: skip
    return replace(first, **probes)
