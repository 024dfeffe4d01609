"""What a sequence of batches forgets, and what SeqMMR's merge and router give back.

SeqMMR, Tables 1 and 5 to 8, Fig. 3. As there, every subject comes once ("distinct"); in a second setting every batch
returns to the same subjects ("shared"); in a third facts are drawn at random, and a few subjects come back ("random").
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from kedit_lab.edit.router import Router
from kedit_lab.edit.weights import put_back
from kedit_lab.facts.sets import at_random, by_density
from kedit_lab.measure.ability import passages
from kedit_lab.measure.health import Reference, health, next_tokens
from kedit_lab.measure.metrics import Report, evaluate, score
from kedit_lab.model.lab import Lab
from kedit_lab.study.sequence import Merge, Run, Weights, choose, lab_reference, route, sequence
from kedit_lab.types import Fact

SETTINGS = ("distinct", "shared", "random")
BASES = ("plain", "merged")
ASKED = 2  # paraphrases and neighbours of each fact; all of them would be most of the time that a grid takes
TEXTS = 8
KINDS = ("rewrite", "paraphrase", "neighborhood")
METRICS = ("efficacy", "paraphrase", "specificity", "score")


def batches_of(setting: str, seed: int = 0, count: int = 10, size: int = 20) -> list[list[Fact]]:
    """``count`` batches of ``size`` facts that the model knows: every subject once, the same ones in every batch, or as
    a random draw has it."""
    if setting not in SETTINGS:
        raise ValueError(f"setting is {setting!r}; choose one of {', '.join(SETTINGS)}")
    each = count if setting == "shared" else 1
    drawn = at_random(count * size, seed) if setting == "random" else by_density(count * size, each, seed)
    facts = [replace(f, paraphrases=f.paraphrases[:ASKED], neighborhood=f.neighborhood[:ASKED]) for f in drawn]
    return [facts[i::count] if setting == "shared" else facts[i * size : (i + 1) * size] for i in range(count)]


def unrelated(batches: Sequence[Sequence[Fact]], seed: int = 0) -> list[str]:
    """As many prompts as there are facts, about people of whom nothing is edited (SeqMMR's negative records)."""
    taken = {fact.subject for batch in batches for fact in batch}
    others = [fact for fact in by_density(600, 1, seed + 1000) if fact.subject not in taken]
    return [fact.text for fact in others[: sum(map(len, batches))]]


def chains(lab: Lab, batches: Sequence[Sequence[Fact]], method: str, ratios: Sequence[float], bases: Sequence[str],
           **overrides: Any) -> Iterator[tuple[str, float, list[Weights], float]]:  # fmt: skip
    """(base, ratio, weights after every batch, seconds per batch) of the sequence alone ("none", 0) and merged.

    On the base "plain" the merged weights follow from the unmerged ones, and the seconds are the merge's alone.
    """
    quiet: dict[str, Any] = {"every": len(batches), "reference": lab_reference(lab, 1)} | overrides
    began = time.perf_counter()
    alone = sequence(lab, batches, method, **quiet)
    yield "none", 0.0, alone.states, (time.perf_counter() - began) / len(batches)
    for base, ratio in product(bases, ratios):
        merge, began = Merge(ratio, base), time.perf_counter()
        states = merged(alone, merge) if base == "plain" else sequence(lab, batches, method, merge, **quiet).states
        yield base, ratio, states, (time.perf_counter() - began) / len(batches)


def merged(run: Run, merge: Merge) -> list[Weights]:
    """SeqMMR's second chain beside a sequence that was run without it (``base`` "plain")."""
    states = [run.states[0]]
    for now in run.states[1:]:
        states.append(merge.merged(states[-1], now))
    return states


def forgetting(lab: Lab, method: str = "memit", setting: str = "shared", seed: int = 0, count: int = 10, size: int = 20,
               ratios: Sequence[float] = (0.85,), bases: Sequence[str] = BASES, k: int = 2, questions: int = 60,
               written: bool = False, **overrides: Any) -> dict[str, Any]:  # fmt: skip
    """Batches in sequence, asked at the end: by the sequence alone and merged, with and without the router.

    ``kept`` has a row per base, ratio, router and batch with the metrics (and the efficacy that the edited model had
    right behind the batch, if ``written`` is asked for); ``whole`` one per base, ratio and router with
    the ``kl`` behind unrelated prompts and the ``ability`` (passage questions) of what answers; ``weights`` one per
    base and ratio with the ``kls`` after every batch, the ``perplexity`` and the ``seconds`` of an edit or a merge per
    batch. ``answer`` and ``route`` are the seconds of one prompt.
    """
    batches = batches_of(setting, seed, count, size)
    router, reference = route(batches, unrelated(batches, seed), k, None), lab_reference(lab, TEXTS)
    asked, began = passages(questions), time.perf_counter()
    before, could = ask(lab, batches), right(lab, asked)
    told: dict[str, Any] = {"answer": (time.perf_counter() - began) / (len(asked) + sum(map(len, before)))}
    told |= {"route": paced(router, batches), "kept": [], "whole": [], "weights": []}
    for base, ratio, states, seconds in chains(lab, batches, method, ratios, bases, **overrides):
        try:
            well = [state_health(lab, state, reference) for state in states[1:]]
            now, can, drift = ask(lab, batches), right(lab, asked), drifts(lab, reference)
            wrote = at_once(lab, states, batches) if written else []
        finally:
            put_back(lab.arch, states[0])
        kls, perplexity = [row["kl"] for row in well], well[-1]["perplexity"]
        arm = {"base": base, "ratio": ratio}
        told["weights"].append(arm | {"kls": kls, "perplexity": perplexity, "seconds": seconds})
        for way in (None, router):
            at = arm | {"router": way is not None}
            for b, (found, then) in enumerate(zip(now, before, strict=True)):
                metrics = choose(found, then, way).summary()[list(METRICS)].to_dict()
                own = {"written": wrote[b]} if written else {}
                told["kept"].append(at | {"batch": b + 1} | metrics | own)
            ability = np.where(sent(way, [prompt for prompt, _ in asked]), can, could).mean()
            kl = (drift * sent(way, reference.prompts)).mean()
            told["whole"].append(at | {"kl": float(kl), "ability": float(ability)})
    return told


def sent(router: Router | None, prompts: Sequence[str]) -> Bool[np.ndarray, " prompts"]:
    """Which prompts the edited model answers: all without a router."""
    return np.ones(len(prompts), bool) if router is None else router.decide(prompts)


def ask(lab: Lab, batches: Sequence[Sequence[Fact]]) -> list[Report]:
    """Every batch asked of the model as it stands."""
    return [evaluate(lab, batch, kinds=KINDS) for batch in batches]


def at_once(lab: Lab, states: Sequence[Weights], batches: Sequence[Sequence[Fact]]) -> list[float]:
    """The efficacy of every batch on the model as it was right behind it; the lab then carries the last weights."""
    found = []
    for state, batch in zip(states[1:], batches, strict=True):
        put_back(lab.arch, state)
        found.append(float(evaluate(lab, batch, kinds=("rewrite",)).summary()["efficacy"]))
    return found


def right(lab: Lab, asked: Sequence[tuple[str, str]]) -> Float[np.ndarray, " questions"]:
    """Which questions are answered exactly."""
    return score(lab, asked)["exact"].to_numpy()


def drifts(lab: Lab, reference: Reference) -> Float[np.ndarray, " prompts"]:
    """KL (nats; unedited, now) behind each prompt of a reference."""
    return (reference.said.exp() * (reference.said - next_tokens(lab, reference.prompts))).sum(-1).cpu().numpy()


def state_health(lab: Lab, state: Weights, reference: Reference) -> dict[str, float]:
    """The health of the model with these weights, which it then carries."""
    put_back(lab.arch, state)
    return health(lab, reference)


def paced(router: Router, batches: Sequence[Sequence[Fact]]) -> float:
    """Seconds that a router takes for one prompt."""
    prompts = [fact.text for batch in batches for fact in batch]
    began = time.perf_counter()
    router.decide(prompts)
    return (time.perf_counter() - began) / len(prompts)


def unfolded(rows: pd.DataFrame, column: str = "kept") -> pd.DataFrame:
    """``forgetting``'s rows as a tidy table: one row per entry of a list (``kept``, ``whole``, ``weights``)."""
    axes = [name for name in rows.columns if name not in ("kept", "whole", "weights")]
    return pd.DataFrame([row[axes].to_dict() | entry for _, row in rows.iterrows() for entry in row[column]])
