"""The nouns of the field as plain frozen dataclasses: what is asked (Fact, Probe) what is changed (Delta, Dense),
and what sequential editing remembers (Memory)."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from reprlib import repr as short
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SLOT = "{}"
LARGE = sys.float_info.max  # of finite numbers


@dataclass(frozen=True)
class Probe:
    """A filled prompt with the answer that it should get; ``kind`` says why it is asked (alias, inverse, ...).

    ``aliases`` are other spellings of the answer that count as right where a metric is asked to take them.
    """

    prompt: str
    answer: str
    kind: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "answer", "kind"):
            one_text(name, getattr(self, name))
        object.__setattr__(self, "aliases", several("aliases", self.aliases, str))


@dataclass(frozen=True)
class Fact:
    """One edit request: after the edit, ``prompt`` with ``subject`` in its slot should continue with ``target_new``.

    ``target_true`` is what the model says today, or None where it knows nothing. ``paraphrases`` are filled prompts
    that should give ``target_new`` too; ``neighborhood`` probes are other subjects whose answers must stay;
    ``portability`` probes are consequences of the edit; ``locality`` probes ask for anything else that must stay (other
    relations of the subject, unrelated questions); ``generation`` prompts start free text (the subject does where there
    is none). ``aliases`` are other spellings of ``target_new``, ``id`` names the record in the set it was read from.
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    locality: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        for name in ("subject", "prompt", "target_new"):
            seen = getattr(self, name)
            if not isinstance(seen, str) or not seen.strip():
                raise ValueError(f"{name} is {seen!r}; a fact needs a non-empty text there")
        if not isinstance(self.target_true, str | None):
            raise ValueError(f"target_true is {self.target_true!r}; give a text, or None where nothing is known")
        for name in ("relation", "id"):
            one_text(name, getattr(self, name))
        texts, probes = ("paraphrases", "generation", "aliases"), ("neighborhood", "portability", "locality")
        for name in (*texts, *probes):
            object.__setattr__(self, name, several(name, getattr(self, name), str if name in texts else Probe))
        slots = self.prompt.count(SLOT)
        if slots != 1:
            hint = (
                f"put '{{}}' where the subject {self.subject!r} goes"
                if slots == 0
                else "keep one '{}' and write the other mention of the subject out"
            )
            raise ValueError(f"prompt {self.prompt!r} has {slots} slots, not one; {hint}")
        if self.target_true is not None and self.target_true.strip() == self.target_new.strip():
            raise ValueError(
                f"target_new {self.target_new!r} is what the model should say already (target_true) for "
                f"{self.text!r}; give another target_new"
            )
        if ends_in(self.prompt.rstrip(), self.target_new.strip()):
            raise ValueError(
                f"prompt {self.prompt!r} already ends in its target_new {self.target_new!r}; "
                "end the prompt just before the object"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot, as the model reads it."""
        return self.prompt.replace(SLOT, self.subject).rstrip()

    def with_target(self, target_new: str) -> "Fact":
        """The same question with another answer."""
        return replace(self, target_new=target_new)


def one_text(name: str, seen: Any) -> str:
    """What was seen; a ValueError unless it is a text."""
    if not isinstance(seen, str):
        raise ValueError(f"{name} is {short(seen)}; give a text")
    return seen


def within(seen: Any, least: float | int = -LARGE, most: float | int = LARGE) -> bool:
    """Whether something is a number (no truth value) from ``least`` to ``most``; without them, a finite one."""
    return isinstance(seen, Real) and not isinstance(seen, bool) and bool(least <= seen <= most)


def several(name: str, given: Iterable[Any], kind: type) -> tuple[Any, ...]:
    """What was given as a tuple. One text or one thing where several are due, and things that are not of the ``kind``,
    raise a ValueError."""
    wanted = f"give a list of {'texts' if kind is str else kind.__name__ + 's'}"
    if isinstance(given, str | kind | dict) or not isinstance(given, Iterable):
        raise ValueError(f"{name} is {short(given)}; {wanted}, also for a single one")
    found = tuple(given)
    for i, one in enumerate(found):
        if not isinstance(one, kind):
            raise ValueError(f"{name}[{i}] is {short(one)}; {wanted}")
    return found


def ends_in(text: str, word: str) -> bool:
    """Whether a text ends in a word: "the art" in "art", but "the smart" does not."""
    before = text.removesuffix(word)
    return before != text and not re.search(r"\w\Z", before, re.ASCII)


class NoUpdate(ValueError):
    """There is nothing to write: the model says the targets already, or the recipe is too weak to move it.

    ``curves`` are the losses that were looked at.
    """

    def __init__(self, message: str, curves: Sequence[list[float]] = ()) -> None:
        super().__init__(message)
        self.curves = list(curves)


@dataclass(frozen=True)
class Delta:
    """A change of one weight, kept as factors: ΔW = left · rightᵀ in the orientation v = W k (d_out x d_k).

    ``left`` is d_out x rank (residuals), ``right`` is d_k x rank (what the solver made of the keys).
    """

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "d_k rank"]

    def matrix(self) -> Float[Tensor, "d_out d_k"]:
        """ΔW itself, in the factors' dtype (float64 as the solvers make it)."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm ‖ΔW‖ from the factors alone: sqrt(sum((LᵀL) * (RᵀR)))."""
        gram = (self.left.T @ self.left) * (self.right.T @ self.right)
        return float(gram.sum().clamp_min(0).sqrt())

    def __mul__(self, factor: float | int) -> "Delta":
        return Delta(self.left * factor, self.right)

    def __add__(self, other: "Delta | Dense") -> "Delta | Dense":
        if isinstance(other, Dense):
            return Dense(self.matrix(), self.left) + other
        return Delta(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))


@dataclass(frozen=True)
class Dense:
    """A change of one weight that has no small factors, in the orientation v = W k: pruned, clamped or trained, or
    solved for more facts than keys have dimensions; ``left`` then holds their residuals, as they came.
    """

    change: Float[Tensor, "d_out d_k"]
    left: Float[Tensor, "d_out facts"] | None = None

    def matrix(self) -> Float[Tensor, "d_out d_k"]:
        """ΔW itself."""
        return self.change

    def norm(self) -> float:
        """Frobenius norm ‖ΔW‖."""
        return float(self.change.double().norm())

    def __mul__(self, factor: float | int) -> "Dense":
        return Dense(self.change * factor, None if self.left is None else self.left * factor)

    def __add__(self, other: "Delta | Dense") -> "Dense":
        left = None if self.left is None or other.left is None else torch.cat([self.left, other.left.to(self.left)], 1)
        return Dense(self.change + other.matrix().to(self.change), left)


@dataclass(frozen=True)
class Memory:
    """What earlier batches taught, per layer: ``past`` holds Σ k kᵀ over their ``facts`` facts' keys (d_k x d_k).

    An explicit argument and return value of sequential editing (MEMIT_seq and AlphaEdit keep it in a global).
    """

    past: dict[int, Float[Tensor, "d_k d_k"]] = field(default_factory=dict)
    facts: int = 0
