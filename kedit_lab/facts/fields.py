"""The fields of a published record, looked up by name: one that is not as it should be is named in the error."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from kedit_lab.types import Probe

SURROGATE = re.compile("[\ud800-\udfff]")


class Misfit(ValueError):
    """A record is not in the format: the ``field`` and what was seen there."""

    def __init__(self, field: str, seen: str) -> None:
        super().__init__(f"field {field}: {seen}")


@dataclass
class Row:
    """A record or a part of one, which knows its place in it; ``skipped`` counts prompts that have no answer."""

    value: Any
    place: str = ""
    skipped: list[str] = field(default_factory=list)

    def at(self, key: str) -> str:
        """The full name of a field."""
        return f"{self.place}.{key}" if self.place else key

    def part(self, key: str, needed: bool = False) -> "Row":
        """An object inside this one; an empty one where the field is missing or null and not needed."""
        value = self.needed(key) if needed else self.value.get(key)
        if not isinstance(value, dict | None):
            raise Misfit(self.at(key), f"{short(value)} is no object")
        return Row(value or {}, self.at(key), self.skipped)

    def parts(self, key: str, needed: bool = False) -> list["Row"]:
        """The objects of a list inside this one; none where the field is missing or null and not needed."""
        value = self.needed(key) if needed else self.value.get(key)
        if not isinstance(value, list | None):
            raise Misfit(self.at(key), f"{short(value)} is no list")
        rows = [Row(part, f"{self.at(key)}[{i}]", self.skipped) for i, part in enumerate(value or [])]
        for row in rows:
            if not isinstance(row.value, dict):
                raise Misfit(row.place, f"{short(row.value)} is no object")
        return rows

    def first(self, keys: tuple[str, ...]) -> Any:
        """The value of the first of some fields that is there, or None."""
        for key in keys:
            value = self.value.get(key)
            if not nothing(value):
                return value
        return None

    def needed(self, *keys: str) -> Any:
        """The value of the first of some fields that is there; there has to be one."""
        value = self.first(keys)
        if value is None:
            there = ", ".join(map(str, self.value)) or "no fields"
            empty = any(key in self.value for key in keys)
            raise Misfit(self.at(keys[0]), "is null" if empty else f"is missing; this object has {there}")
        return value

    def text(self, *keys: str) -> str:
        """The text of the first of some fields that is there; there has to be one."""
        return as_text(self.needed(*keys), self.at(keys[0]))

    def label(self, *keys: str) -> str:
        """The text of the first of some fields that is there, or "" where none is."""
        value = self.first(keys)
        return "" if value is None else as_text(value, self.at(keys[0])).strip()

    def texts(self, *keys: str) -> tuple[str, ...]:
        """All texts in a field, which may be one text or a list, nested or not; none where it is missing."""
        return tuple(flat(self.first(keys), self.at(keys[0])))

    def answers(self, *keys: str) -> tuple[str, ...]:
        """The spellings of an object: a text, a list of them, or an object with the text under "str"."""
        value = self.needed(*keys)
        if isinstance(value, dict):
            return (self.part(keys[0]).text("str"),)
        return tuple(flat(value, self.at(keys[0]))) or ("",)

    def answered(self, prompts: Sequence[str], answer: str, kind: str,
                 aliases: tuple[str, ...] = ()) -> Iterator[Probe]:  # fmt: skip
        """Prompts with one answer; where there is none they are skipped."""
        if answer:
            yield from (Probe(prompt, answer, kind, aliases) for prompt in prompts)
        else:
            self.skipped += [self.place] * len(prompts)

    def probes(self, kind: str, key: str) -> Iterator[Probe]:
        """The prompts of a list with their answers (``ground_truth``: a text, a list of spellings, or a nested one)."""
        for row in self.parts(key):
            prompts, truth = row.texts("prompt"), row.value.get("ground_truth")
            if not prompts:
                self.skipped += [row.place] if "prompt" in row.value else [row.text("prompt")]
            paired = isinstance(truth, list) and len(truth) == len(prompts) > 1
            if not paired and len(prompts) > 1 and isinstance(truth, list) and any(isinstance(t, list) for t in truth):
                raise Misfit(row.at("ground_truth"), f"{len(truth)} answers for {len(prompts)} prompts")
            for i, prompt in enumerate(prompts):
                said = tuple(dict.fromkeys(flat(truth[i] if paired else truth, row.at("ground_truth"))))
                if said:
                    yield Probe(prompt, said[0], kind, said[1:])
                else:
                    self.skipped.append(row.place)


def short(value: Any) -> str:
    """What was seen, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_text(value: Any, place: str) -> str:
    """A text; numbers are written out. Half a surrogate pair, which JSON can write, is none: no tokenizer reads it."""
    if isinstance(value, str):
        if not value.isascii() and SURROGATE.search(value):
            raise Misfit(place, f"{short(value)} is no Unicode text")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return str(value)
    raise Misfit(place, f"{short(value)} is no text")


def nothing(value: Any) -> bool:
    """Whether there is nothing: null, or the NaN that tables are written with."""
    return value is None or value != value


def flat(value: Any, place: str) -> list[str]:
    """All texts in a text or nested lists of them, in order; blank ones and nulls are left out."""
    if not isinstance(value, list):
        return [text] if not nothing(value) and (text := as_text(value, place)).strip() else []
    if all(type(part) is str for part in value) and "".join(value).isascii():  # most lists; a set has a million texts
        return [part for part in value if part and not part.isspace()]
    return [text for part in value for text in flat(part, place)]
