"""General ability: what an edit of facts should leave alone, asked of the lab model by a small suite of its own, and of
any model by the tasks of lm-evaluation-harness."""

import random
from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path
from typing import Any

import pandas as pd

from kedit_lab.facts.corpus import LONG, Writer, passage_question
from kedit_lab.facts.world import World
from kedit_lab.measure.harness import run
from kedit_lab.measure.health import perplexity
from kedit_lab.measure.metrics import score
from kedit_lab.model.lab import Lab

COLUMNS = ["task", "metric", "value", "stderr", "n"]


def ability(lab: Lab, tasks: str | Sequence[str] | None = None, count: int = 300, seed: int = 0,
            limit: int | None = None, shots: int | None = None, include: str | Path | None = None,
            batch: int = 8) -> pd.DataFrame:  # fmt: skip
    """What the model can do besides its facts, as it stands, edited or not: ``task``, ``metric``, ``value``, ``stderr``
    (of the mean over its ``n`` items; NaN where there is none), and ``chat`` (True) where a chat template was used.

    Without ``tasks`` the lab model's own suite of ``count`` items each, drawn with ``seed``: "passages" (questions that
    only the passage in front answers, about people outside the world), "values" (facts about objects, such as a
    country's continent, that no edit request names) and "text" (perplexity of documents in the training text's style,
    freshly written). It says nothing about other models.

    With ``tasks`` the harness (``pip install 'kedit-lab[ability]'``) asks them of ``lab.model`` itself: names of the
    papers (``harness.TASKS``: "SST-2", "MMLU", ...) or of the harness, at most ``limit`` items each, behind ``shots``
    examples (None: as the task says, mostly 0), ``batch`` rows at a time. ``include`` is a folder with task files of
    your own. The papers' metrics differ: AlphaEdit, EAMET and SeqMMR report the weighted F1 of five greedy tokens on
    100 items of each GLUE task, the harness what its task file names (accuracy, F1, Matthews' correlation).

    Raises ImportError where the harness is not installed, and ValueError for an unknown task, a task asked both alone
    and in a group, or a count under one.
    """
    found = suite(lab, count, seed) if tasks is None else run(lab, tasks, limit, shots, include, batch)
    table = pd.DataFrame(found, columns=COLUMNS)
    return table if lab.chat is None else table.assign(chat=True)


def suite(lab: Lab, count: int = 300, seed: int = 0, world: World | None = None) -> list[tuple[Any, ...]]:
    """The rows of the lab model's own suite."""
    world = world or World.load()
    rows = []
    for task, asked in (("passages", passages(count, seed, world)), ("values", attributes(count, seed, world))):
        share, n = float(score(lab, asked)["exact"].mean()), len(asked)
        rows.append((task, "exact", share, sqrt(share * (1 - share) / (n - 1)) if n > 1 else nan, n))
    return [*rows, ("text", "perplexity", perplexity(lab, documents(count, seed, world)), nan, count)]


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


def attributes(count: int, seed: int, world: World) -> list[tuple[str, str]]:
    """(Prompt, answer) of facts about objects, all of them where there are fewer than ``count``."""
    known = [
        (f"The {name} of {value} is", answer)
        for table in world.attributes.values()
        for name, answers in table.items()
        for value, answer in answers.items()
    ]
    return random.Random(seed).sample(known, min(count, len(known)))


def documents(count: int, seed: int, world: World) -> list[str]:
    """Documents in the style of the training text, written with a seed of their own."""
    stream = Writer(world, random.Random(f"ability {seed}")).documents(LONG)
    return ["".join(text for text, _ in next(stream)) for _ in range(count)]
