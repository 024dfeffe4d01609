"""General ability of the lab model: questions that only a passage answers, which an edit of facts may damage."""

import random

from kedit_lab.facts.corpus import Writer, passage_question
from kedit_lab.facts.world import World
from kedit_lab.measure.metrics import score
from kedit_lab.model.lab import Lab


def passage_accuracy(lab: Lab, count: int = 300, seed: int = 0, world: World | None = None) -> float:
    """Share of passage questions about people outside the world whose answer is the exact arg-max continuation."""
    if count < 1:
        raise ValueError(f"count is {count}; ask at least one question")
    world, rng = world or World.load(), random.Random(seed)
    strangers = Writer(world, rng).strangers
    asked = [passage_question(world, strangers, rng) for _ in range(count)]
    return float(score(lab, [(f"{text} {question}", answer) for text, question, answer in asked])["exact"].mean())
