"""Editing in sequence: batch after batch on the model as edited so far, measured after each, resumable, undoable.

Optionally each batch is merged back with its small entries masked, and a router decides per prompt which model answers
(SeqMMR). State is explicit: weights after every batch, the memory of earlier keys, and the unedited model's basis.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from reprlib import repr as short
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.edit.merging import top
from kedit_lab.edit.recipe import AnyRecipe, Recipe
from kedit_lab.edit.recipes import find
from kedit_lab.edit.router import Decision, Embed, Router
from kedit_lab.edit.run import Basis, edit, remember
from kedit_lab.edit.weights import keep, put_back, write
from kedit_lab.extract.moments import lab_text
from kedit_lab.measure.health import Reference, health
from kedit_lab.measure.metrics import Report, evaluate, known_kinds
from kedit_lab.model.lab import Lab
from kedit_lab.study.checkpoints import Checkpoints, Step
from kedit_lab.types import Fact, Memory, NoUpdate, several, within

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Merge:
    """SeqMMR's merge: M̃_t = M̃_{t-1} + mask ⊙ (M_t - M̃_{t-1}), the mask dropping a share ``ratio`` of entries.

    ``base`` is the model that the next batch edits: "plain" (M_{t-1}: what was dropped comes back later) or "merged".
    """

    ratio: float = 0.85
    base: str = "plain"

    def __post_init__(self) -> None:
        if not within(self.ratio, 0, 1):
            raise ValueError(f"ratio is {self.ratio!r}; it is a share between 0 and 1")
        if self.base not in ("plain", "merged"):
            raise ValueError(f"base is {self.base!r}; choose plain or merged")

    def merged(self, before: Weights, now: Weights) -> Weights:
        """The merged weights, given the merged ones before this batch and the model that the batch made."""
        found = {}
        for name, old in before.items():
            change = now[name].double() - old.double()
            found[name] = (old.double() + top(change, 1 - self.ratio)).to(old.dtype)
        return found


@dataclass(frozen=True)
class Answer:
    """What a routed model says, and why that model was asked."""

    decision: Decision | None
    continuations: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.decision or 'edited model'}\n{self.continuations}"


@dataclass
class Run:
    """A finished (or stopped) sequence. ``states[t]`` holds the edited weights after batch t, ``states[0]`` before any.

    ``retention`` has one row per (after, batch) with the metrics, ``health`` one per batch; ``stopped`` says why a run
    ended early. The model is unedited until ``apply``.
    """

    lab: Lab
    recipe: AnyRecipe
    batches: list[tuple[Fact, ...]]
    states: list[Weights]
    retention: pd.DataFrame
    health: pd.DataFrame
    memory: Memory
    router: Router | None = None
    stopped: str = ""
    at: int = field(default=0, init=False)

    def __repr__(self) -> str:
        done = len(self.states) - 1
        note = f"; stopped: {self.stopped}" if self.stopped else ""
        return f"Run({self.recipe.name}: {done} of {len(self.batches)} batches, model at {self.at}{note})"

    def apply(self) -> "Run":
        """Put the weights after the last batch into the model."""
        return self.go(len(self.states) - 1)

    def undo(self, to: int = 0) -> "Run":
        """Take batches back: the model is then as it was after batch ``to`` (0: unedited), bit for bit."""
        if not 0 <= to <= self.at:
            raise ValueError(f"cannot undo to {to!r}: the model carries batches 1 to {self.at}; apply() first")
        return self.go(to)

    def go(self, to: int) -> "Run":
        """Put the weights after batch ``to`` into the model; refuses where something else changed them meanwhile."""
        for name in self.states[to]:
            weight = self.lab.arch.weight(name).module.weight
            ours = (self.states[self.at], *self.states)  # any of them, where an undo was cut
            if not any(torch.equal(weight, state[name].to(weight.device)) for state in ours):
                raise RuntimeError(
                    f"{name} is not as this run knows it: another edit or run was applied, or one that was applied "
                    "when it was made is not; undo that first"
                )
        try:
            put_back(self.lab.arch, self.states[to])
        finally:  # what interrupts it is raised once all are back
            self.at = to
        return self

    @contextmanager
    def applied(self) -> Iterator["Run"]:
        """The edited weights are in the model inside the context and gone behind it, also after an exception; refused
        where something else changed them in between."""
        with self.standing(len(self.states) - 1):
            yield self

    @contextmanager
    def standing(self, at: int) -> Iterator[None]:
        """The weights after batch ``at`` are in the model inside the context; behind it those before it."""
        before = self.at
        try:
            self.go(at)
            yield
        finally:
            if self.at != before:
                try:
                    self.go(before)
                except KeyboardInterrupt:  # waits until the weights are back
                    self.go(before)
                    raise

    def matrix(self, metric: str = "efficacy") -> pd.DataFrame:
        """The retention matrix of a metric: one row per ``after``, one column per ``batch``."""
        if self.retention.empty:
            return pd.DataFrame(index=pd.Index([], name="after"), columns=pd.Index([], name="batch"))
        return self.retention.pivot(index="after", columns="batch", values=metric)

    def ask(self, prompt: str, k: int = 5) -> Answer:
        """The model's answers behind the last batch, whatever is applied; with a router the model's that it chooses."""
        decision = self.router.route(prompt) if self.router else None
        with self.standing(len(self.states) - 1 if decision is None or decision.edited else 0):
            return Answer(decision, self.lab.ask(prompt, k))


def sequence(lab: Lab, batches: Sequence[Sequence[Fact]], recipe: str | AnyRecipe = "memit",
             merge: Merge | None = None, router: Sequence[str] | None = None, every: int = 1,
             folder: str | Path | None = None, kinds: Sequence[str] = ("rewrite",),
             until: Callable[[dict[str, float]], bool] | None = None, reference: Reference | None = None,
             k: int = 2, embed: Embed | None = None, progress: bool = False, **overrides: Any) -> Run:  # fmt: skip
    """Edit batch after batch; afterwards the model is unedited again and everything stands in the returned ``Run``.

    ``merge`` masks each batch's small entries; ``router`` are unrelated prompts, against which edited prompts are
    told apart by the ``k`` nearest (``embed``: see ``Router.of``). After every ``every`` batches, and the last that
    is kept, all earlier ones are asked (``kinds``), and the health is measured on ``reference``. A batch that
    leaves NaN, or for whose health ``until`` returns True, is rolled back and ends the run. With a ``folder`` a run
    that was cut goes on to the same bits, behind its last whole batch and the target values of the next that were
    found (see ``edit``). Raises ValueError for bad input, and for a folder of another run, one that cannot be
    written to or one without room.
    """
    recipe = find(recipe).on(lab.arch, **overrides)
    if isinstance(batches, Fact | str):
        raise ValueError(f"batches is {short(batches)}; give a list of batches, each a list of facts")
    groups = [several(f"batch {i}", batch, Fact) for i, batch in enumerate(batches, 1)]
    router = None if router is None else several("router", router, str)
    check(groups, every, merge, router, k)
    kinds = known_kinds(kinds)
    reference = reference or lab_reference(lab)
    asked = {"every": every, "kinds": list(kinds), "router": None if router is None else [k, *router],
             "embed": None if embed is None else getattr(embed, "__qualname__", type(embed).__qualname__)}  # fmt: skip
    saved = Checkpoints(folder, lab, recipe, groups, merge, asked) if folder is not None else None
    steps = saved.load() if saved else []
    basis = Basis.of(lab, recipe) if isinstance(recipe, Recipe) else None
    start = {name: lab.arch.weight(name).module.weight.clone() for step in steps[-1:] for name in step.state}
    before = [evaluate(lab, batch, kinds=kinds) for batch in groups] if router is not None else []
    stopped = ""
    routes = None if router is None else partial(route, unrelated=router, k=k, embed=embed)
    try:
        for t in tqdm(range(len(steps) + 1, len(groups) + 1), desc=recipe.name, disable=not progress):
            last = steps[-1] if steps else Step({}, {}, Memory())
            step = advance(lab, groups[t - 1], recipe, basis, merge, start, last, saved.under_way(t) if saved else None)
            step.health = health(lab, reference)
            if not step.health["finite"] or (until is not None and until(step.health)):
                stopped = f"batch {t} was rolled back; its health was {step.health}"
                break
            if t % every == 0 or t == len(groups):
                step.rows = retained(lab, groups[:t], kinds, before, routes)
            steps.append(step)
            if saved:
                saved.save(t, step)
        if steps and not steps[-1].rows:  # the run ended between two measurements
            put_back(lab.arch, start | steps[-1].state)
            steps[-1].rows = retained(lab, groups[: len(steps)], kinds, before, routes)
    finally:
        put_back(lab.arch, start)
    table = pd.DataFrame([row for step in steps for row in step.rows])
    well = pd.DataFrame([{"after": t + 1} | step.health for t, step in enumerate(steps)])
    final = routes(groups[: len(steps)]) if routes is not None and steps else None
    memory = steps[-1].memory if steps else Memory()
    states = [start, *(start | step.state for step in steps)]
    return Run(lab, recipe, groups, states, table, well, memory, final, stopped)


def retained(lab: Lab, batches: Sequence[Sequence[Fact]], kinds: Sequence[str], before: Sequence[Report],
             routes: Callable[..., Router] | None) -> list[dict[str, Any]]:  # fmt: skip
    """What is kept of every batch so far, a row each; with a router of what it chooses, ``before`` or the model now."""
    router = None if routes is None else routes(batches)
    rows = []
    for b, batch in enumerate(batches):
        found = choose(evaluate(lab, batch, kinds=kinds), before[b] if before else None, router)
        rows.append({"after": len(batches), "batch": b + 1} | found.summary().dropna().to_dict())
    return rows


def advance(lab: Lab, batch: Sequence[Fact], recipe: AnyRecipe, basis: Basis | None, merge: Merge | None,
            start: Weights, last: Step, folder: Path | None = None) -> Step:  # fmt: skip
    """Edit one more batch; the model then carries the weights that answer. ``start`` gains newly edited weights.

    A batch that the model says already changes nothing.
    """
    put_back(lab.arch, start | (last.plain if merge is None or merge.base == "plain" else last.state))
    with suppress(NoUpdate):
        made = edit(lab, batch, recipe, memory=last.memory, basis=basis, folder=folder)
        keep(lab.arch, made.deltas, start)
        write(lab.arch, made.deltas)
    step = Step.of(lab, start, remember(lab, batch, recipe, last.memory, basis))
    if merge is not None:
        step.state = merge.merged(start | last.state, step.plain)
        put_back(lab.arch, step.state)
    return step


def check(batches: Sequence[Sequence[Fact]], every: int, merge: Merge | None, router: Sequence[str] | None,
          k: int) -> None:  # fmt: skip
    """Raise a ValueError for batches, a pace, a merge or a router that cannot be run."""
    if not isinstance(merge, Merge | None):
        raise ValueError(f"merge is {merge!r}; give kl.Merge({merge!r}), or None")
    if router is not None and not router:
        raise ValueError("router is empty; give prompts that nobody edits, or None for no router")
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k is {k!r}; 1, 2, ... nearest prompts vote")
    if not batches or not all(batches):
        empty = sum(not batch for batch in batches)
        raise ValueError(f"{len(batches)} batches given, {empty} of them empty; give facts in each")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every is {every!r}; measure after every 1, 2, ... batches")


def lab_reference(lab: Lab, count: int = 32) -> Reference:
    """Some documents about the lab world and their beginnings, as the model reads them now."""
    texts = lab_text(32, seed=9)[:count]
    return Reference.of(lab, texts, [" ".join(text.split()[:6]) for text in texts])


def route(batches: Sequence[Sequence[Fact]], unrelated: Sequence[str], k: int, embed: Embed | None) -> Router:
    """A router over the prompts edited so far."""
    return Router.of([fact.text for batch in batches for fact in batch], unrelated, embed, k)


def choose(edited: Report, unedited: Report | None, router: Router | None) -> Report:
    """The rows of the edited model's report, or the unedited one's where the router sends their prompts there."""
    if unedited is None or router is None:
        return edited
    away = ~router.decide(list(edited["prompt"]))
    chosen = edited.copy()
    chosen.loc[away] = unedited.loc[away]
    return chosen
