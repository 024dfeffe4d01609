"""The course's two promises: a claim's verdict is computed where it is read, and an answer is checked, not shown.

``data/papers/experiments.csv`` lists every experiment of the papers with its claim in one sentence. A notebook that
tests one ends in ``claim(id, ...)``; ``make notebooks`` collects these outputs in ``data/claims.csv``.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from kedit_lab.paths import data_dir, whole

EXAMPLES = {
    "number": "3 or 0.5",
    "word": '"rome"',
    "yes or no": "True or False",
    "set of words": '{"rome", "memit"}',
}


def experiments() -> pd.DataFrame:
    """Every experiment of the papers: ``paper, item, claim``, and what it ``needs`` that the lab lacks; by ``id``."""
    return pd.read_csv(data_dir() / "papers" / "experiments.csv", dtype=str, keep_default_na=False).set_index("id")


@dataclass(frozen=True)
class Claim:
    """A paper's claim with what was found here: ``parts`` says of each condition whether it holds."""

    id: str
    text: str
    parts: Mapping[str, bool]
    measured: str
    why: str = ""

    @property
    def verdict(self) -> str:
        """ "holds" if every part does, "does not hold" if none does, else "partly"."""
        return "holds" if all(self.parts.values()) else "partly" if any(self.parts.values()) else "does not hold"

    def __repr__(self) -> str:
        lines = [f"claim {self.id}: {self.text}", *(f"  {bool(held)!s:5} {part}" for part, held in self.parts.items())]
        why = f" ({self.why})" if self.why and self.verdict != "holds" else ""
        lines.append(f"verdict: {self.verdict}{why}")
        return "\n".join([*lines, f"measured: {self.measured}"])


def claim(name: str, parts: Mapping[str, Any], measured: Mapping[str, Any], why: str = "") -> Claim:
    """The verdict on an experiment, from conditions that were computed.

    ``parts`` maps each condition, in words, to whether it holds; ``measured`` maps a name to a number or to one number
    per seed, told as mean and range; ``why`` is the reason of a verdict that is not "holds". Raises ValueError for an
    unknown id, no parts or numbers.
    """
    known = experiments()
    if name not in known.index:
        raise ValueError(f"unknown experiment {name!r}; data/papers/experiments.csv lists {', '.join(known.index)}")
    if not parts or not measured:
        raise ValueError(f"{name} has {len(parts)} conditions and {len(measured)} numbers; give at least one of each")
    told = "; ".join(f"{label} {spread(values)}" for label, values in measured.items())
    return Claim(name, known.loc[name, "claim"], {part: bool(held) for part, held in parts.items()}, told, why)


def spread(values: Any) -> str:
    """ "0.31" for one number, "0.31 (0.20 to 0.40, 5 seeds)" for one per seed."""
    seen = np.atleast_1d(np.asarray(values, dtype=float)).round(9) + 0.0  # differences that cancel are 0, not -1e-17
    text = f"{seen.mean().round(9) + 0.0:.3g}"
    return text if len(seen) == 1 else f"{text} ({seen.min():.3g} to {seen.max():.3g}, {len(seen)} seeds)"


def claims() -> pd.DataFrame:
    """What the notebooks found of every experiment: claim, notebook, cell, measured effect, verdict and why."""
    return pd.read_csv(data_dir() / "claims.csv", dtype=str, keep_default_na=False).set_index("id")


def check(exercise: str, answer: Any) -> str:
    """Whether an answer to an exercise is right, without giving it away: ``kl.check("03.2", 2)``.

    Answers are numbers, words, yes or no, or sets of words; what kind is asked for is said. Raises ValueError for an
    unknown exercise or a number that is not finite, and TypeError for an answer of another kind.
    """
    sealed = answers()
    if exercise not in sealed:
        raise ValueError(f"unknown exercise {exercise!r}; those with a checked answer are {', '.join(sorted(sealed))}")
    entry, answer = sealed[exercise], plain(answer)
    if kind(answer) != entry["kind"]:
        asked = f"a {entry['kind']}, such as {EXAMPLES[entry['kind']]}"
        raise TypeError(f"exercise {exercise} asks for {asked}, not a {kind(answer)} ({answer!r})")
    forms = canonical(answer, entry["step"])
    right = any(digest(entry["salt"], form) == entry["hash"] for form in forms)
    return f"{exercise}: right" if right else f"{exercise}: not yet"


def seal(exercise: str, answer: Any, step: float | int = 1) -> None:
    """Store the hash of an answer, for authors; numbers count as right within one and a half ``step``."""
    salt = secrets.token_hex(8)
    entry = {"kind": kind(answer), "step": step, "salt": salt, "hash": digest(salt, canonical(answer, step)[0])}
    with whole(data_dir() / "answers.json") as temporary:
        temporary.write_text(json.dumps(dict(sorted((answers() | {exercise: entry}).items())), indent=1) + "\n")


def answers() -> dict[str, dict[str, Any]]:
    """The sealed answers by exercise."""
    path = data_dir() / "answers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def plain(answer: Any) -> Any:
    """The number in an array or tensor of one element; anything else as it is."""
    return answer.item() if hasattr(answer, "item") and np.prod(answer.shape) == 1 else answer


def kind(answer: Any) -> str:
    """What an answer is, in a word."""
    if isinstance(answer, bool | np.bool_):
        return "yes or no"
    if isinstance(answer, Real):
        return "number"
    if isinstance(answer, str):
        return "word"
    if isinstance(answer, Iterable):
        return "set of words"
    raise TypeError(f"an answer is a number, a word, True or False, or a set of words, not {type(answer).__name__}")


def canonical(answer: Any, step: float | int) -> list[str]:
    """An answer's spellings that count as the same: the neighbouring steps of a number, words without case."""
    if isinstance(answer, bool | np.bool_):
        return [str(bool(answer))]
    if isinstance(answer, Real):
        if not np.isfinite(answer):
            raise ValueError(f"the answer is {answer}, which is no finite number; look at what it was computed from")
        at = round(float(answer) / step)
        return [str(at), str(at - 1), str(at + 1)]
    if isinstance(answer, str):
        return [" ".join(answer.casefold().split())]
    return ["|".join(sorted({" ".join(str(word).casefold().split()) for word in answer}))]


def digest(salt: str, form: str) -> str:
    """A slow hash of an answer, so that it cannot be read off, nor guessed at a glance."""
    return hashlib.pbkdf2_hmac("sha256", form.encode(), salt.encode(), 50_000).hex()
