"""General ability of the lab model: questions that only a passage answers, which an edit of facts may damage."""

import random

from kedit_lab.facts.corpus import Writer, passage_question
from kedit_lab.facts.world import World
from kedit_lab.measure.metrics import score
from kedit_lab.model.lab import Lab


def passages(count: int = 300, seed: int = 0, world: World | None = None) -> list[tuple[str, str]]:
    """(Passage and question, answer) about people outside the world; raises ValueError for a count under one."""
    if count < 1:
        raise ValueError(f"count is {count}; ask at least one question")
    world, rng = world or World.load(), random.Random(seed)
    strangers = Writer(world, rng).strangers
    asked = [passage_question(world, strangers, rng) for _ in range(count)]
    return [(f"{text} {question}", answer) for text, question, answer in asked]


def passage_accuracy(lab: Lab, count: int = 300, seed: int = 0, world: World | None = None) -> float:
    """Share of ``passages`` whose answer is the exact arg-max continuation."""
    return float(score(lab, passages(count, seed, world))["exact"].mean())
