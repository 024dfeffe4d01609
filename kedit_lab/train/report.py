"""What the lab model knows and how: the table that its model card shows and that the tests assert."""

import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from kedit_lab.extract.keys import read
from kedit_lab.extract.trace import interchange
from kedit_lab.facts.sets import by_density, twins
from kedit_lab.facts.world import GENERIC, World
from kedit_lab.measure.ability import passage_accuracy
from kedit_lab.measure.metrics import score
from kedit_lab.model.lab import Lab
from kedit_lab.paths import whole

# quantity -> the least (or, for the late layers, the most) that the committed model must reach
REQUIRED = {
    "recall, subject-first template": 0.98,
    "recall, worst other trained template": 0.95,
    "recall, template-relation pairs never trained together": 0.85,
    "recall behind a random prefix of 5 tokens": 0.95,
    "recall behind a random prefix of 50 tokens": 0.90,
    "passage questions on unseen subjects": 0.85,
    "interchange, best early layer": 0.90,
    "interchange, last two layers (at most)": 0.15,
}


def recall(lab: Lab, world: World, template: str, count: int, rng: random.Random, prefix: str = "") -> float:
    """Share of sampled true facts whose object is the exact arg-max continuation of the template."""
    facts = [(s, world.relations[r], o) for (s, r), o in world.known.items() if template in world.relations[r].trained]
    sample = rng.sample(facts, min(count, len(facts)))
    return float(score(lab, [(prefix + world.prompt(r, template, s), o) for s, r, o in sample])["exact"].mean())


def measurements(lab: Lab, world: World, count: int = 1000, seed: int = 0) -> Iterator[tuple[str, float]]:
    """(quantity, value) of everything in REQUIRED, and recall of every template, on ``count`` sampled facts each."""
    rng = random.Random(seed)
    others = {}
    yield "recall, subject-first template", recall(lab, world, "subject_first", count, rng)
    for template in [*list(GENERIC)[1:], "cloze0", "cloze1", "cloze2"]:
        if any(template in r.trained for r in world.relations.values()):
            others[template] = recall(lab, world, template, count, rng)
            yield f"recall, template {template}", others[template]
    yield "recall, worst other trained template", min(others.values())
    withheld = [(s, world.relations[r], o) for (s, r), o in world.known.items()]
    never = [(world.prompt(r, r.withheld, s), o) for s, r, o in withheld]
    found = score(lab, rng.sample(never, min(count, len(never))))["exact"].mean()
    yield "recall, template-relation pairs never trained together", float(found)
    for length in (5, 50):
        texts = lab.prefixes(5, length, seed=seed + length)
        hits = [recall(lab, world, "subject_first", count // 5, rng, text) for text in texts]
        yield f"recall behind a random prefix of {length} tokens", sum(hits) / len(hits)
    yield "passage questions on unseen subjects", passage_accuracy(lab, count, seed, world)
    flips = interchange(lab, twins(count // 2, seed, world=world)).groupby("layer")["flipped"].mean()
    for layer, share in flips.items():
        yield f"interchange, layer {layer}", float(share)
    yield "interchange, best early layer", float(flips.iloc[: len(flips) // 2].max())
    yield "interchange, last two layers (at most)", float(flips.iloc[-2:].max())


def report(lab: Lab, world: World, count: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The measured table: ``value``, ``required`` and ``holds`` per quantity."""
    table = pd.Series(dict(measurements(lab, world, count, seed)), name="value").to_frame()
    table["required"] = pd.Series(REQUIRED)
    reached = (table["value"] >= table["required"]) ^ table.index.str.endswith("(at most)")
    table["holds"] = reached.where(table["required"].notna())
    return table


def write_report(table: pd.DataFrame, path: Path) -> None:
    """Write the table as JSON, one quantity a line."""
    body = ",\n".join(f' "{name}": {value:.4f}' for name, value in table["value"].items())
    with whole(path) as temporary:
        temporary.write_text("{\n" + body + "\n}\n", encoding="utf-8")


@torch.no_grad()
def stream_norms(lab: Lab, world: World, seed: int = 0) -> list[float]:
    """Mean norm of the residual stream behind every block, at the last subject token of 100 sampled prompts."""
    facts = by_density(100, seed=seed, world=world)
    found = read(lab, facts, "block", range(lab.arch.layers), None, "subject_last")
    return [float(states.norm(dim=-1).mean()) for states in found.values()]
