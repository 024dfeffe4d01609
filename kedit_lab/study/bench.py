"""What an edit costs: milliseconds per fact, against the same computation written plainly, one fact at a time."""

import gc
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.edit import targets
from kedit_lab.edit.groups import group
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import TABLE, located
from kedit_lab.edit.run import edit
from kedit_lab.edit.solvers import Preserved, ridge
from kedit_lab.edit.weights import Change
from kedit_lab.extract.keys import keys, streams
from kedit_lab.extract.moments import second_moment
from kedit_lab.facts.sets import by_density
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import trim
from kedit_lab.study.estimate import now
from kedit_lab.study.plain import plain_keys, plain_solve, plain_target


def clock(lab: Lab, work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds until the device has done it)."""
    began = now(lab)
    return work(), now(lab) - began


def beside(lab: Lab, work: Callable[[], Any], plain: Callable[[], Any]) -> tuple[Any, float, Any, float]:
    """(result, seconds) of some work and of its plain form; the work is warm, and timed before and behind the other.

    A machine's speed drifts by some percent within the seconds that this takes: the mean of the two has that of both.
    """
    work()  # memory is new to the process
    _, before = clock(lab, work)
    plainly, took = clock(lab, plain)
    result, behind = clock(lab, work)
    return result, (before + behind) / 2, plainly, took


def bench(lab: Lab, sizes: Sequence[int] = (1, 10, 100), method: str = "memit", seed: int = 0, plain: int = 100,
          texts: Sequence[str] | None = None, **overrides: Any) -> pd.DataFrame:  # fmt: skip
    """Milliseconds per fact of keys, targets and solve, batched and plain, their ratio, and the agreement of ΔW.

    Both forms run in this process, with the same prefixes, step size and early stop; statistics are not counted. The
    plain form runs on the first ``plain`` facts of a size ("plain facts"), and ΔW is compared on those.
    """
    recipe = located(method).on(lab.arch, **overrides)
    layer, prefixes = recipe.layers[-1], lab.prefixes(recipe.prefixes, recipe.prefix_length)
    moment = second_moment(lab, layer, texts)
    preserved = Preserved(moment, recipe.lam_of(layer))
    _ = preserved.factor
    one = by_density(1, seed=seed)
    plain_keys(lab, one, layer, prefixes)
    plain_target(lab, one[0], recipe, prefixes)
    rows = []
    for size in sizes:
        facts = by_density(size, seed=seed)
        some = facts[:plain]
        fast, slow = {}, {}
        k, fast["keys"], slow_k, slow["keys"] = beside(
            lab,
            lambda f=facts: keys(lab, f, layer, prefixes),
            lambda f=some: plain_keys(lab, f, layer, prefixes),
        )
        found, fast["targets"], slow_z, slow["targets"] = beside(
            lab,
            lambda f=facts: targets.values(lab, f, group(lab, f, recipe.group, layer), recipe, prefixes),
            lambda f=some: torch.stack([plain_target(lab, x, recipe, prefixes) for x in f]),
        )
        h, n = streams(lab, facts, layer).float(), len(some)
        delta, fast["solve"], whole, slow["solve"] = beside(
            lab,
            lambda k=k, r=found.z - h: ridge(k, r, preserved),
            lambda k=slow_k, r=slow_z - h[:n]: plain_solve(k, r, moment, preserved.lam),
        )
        same = agreement(delta if n == size else ridge(k[:n], (found.z - h)[:n], preserved), whole)
        slow["solve"] *= n / size  # one inverse for the whole batch, whatever its size
        fast["all"], slow["all"] = sum(fast.values()), sum(slow.values())
        for stage in fast:
            each, plainly = 1000 * fast[stage] / size, 1000 * slow[stage] / n
            rows.append({"facts": size, "plain facts": n, "stage": stage, "ms per fact": each,
                         "plain, ms per fact": plainly, "ratio": plainly / each, "cosine of ΔW": same})  # fmt: skip
    return pd.DataFrame(rows)


def bench_methods(lab: Lab, n: int = 100, names: Sequence[str] | None = None, steps: int = 8, seed: int = 0,
                  progress: bool = False) -> pd.DataFrame:  # fmt: skip
    """Seconds of one edit of ``n`` facts with every locate-then-edit recipe, and the ratio to memit, in this process.

    As shipped, where recipes stop at different times (``steps`` is the mean length of a curve), and with the same
    number of ``steps`` and no early stop for all ("equal seconds", "equal ratio"): what the method itself costs.
    Statistics are read from their cache and not counted. Facts are distinct.
    """
    names = names or [name for name, recipe in TABLE.items() if isinstance(recipe, Recipe)]
    facts = by_density(n, seed=seed)
    rows = []
    for name in names:
        located(name)
    for name in tqdm(["memit", *(name for name in names if name != "memit")], disable=not progress):
        edit(lab, facts[:2], name)  # warm up, and fill the cache
        made, equal = edit(lab, facts, name), edit(lab, facts, name, steps=steps, stop=0.0, settled=0.0)
        spent = [sum(t for stage, t in e.seconds.items() if stage != "statistics") for e in (made, equal)]
        length = sum(map(len, made.curves)) / len(made.curves)
        told = {"method": name, "seconds": spent[0], "ratio": 1.0, "steps": length}
        rows.append(told | {"equal seconds": spent[1], "equal ratio": 1.0} | made.seconds)
    frame = pd.DataFrame(rows).set_index("method")
    for column, ratio in (("seconds", "ratio"), ("equal seconds", "equal ratio")):
        frame[ratio] = frame[column] / frame.loc["memit", column]
    return frame


def bench_memory(lab: Lab, n: int = 1000, method: str = "memit", seed: int = 0,
                 moment_texts: Sequence[str] | None = None, **overrides: Any) -> pd.Series:  # fmt: skip
    """Peak memory (MB) and seconds of one edit of ``n`` facts, statistics in their cache, and what it needs at least.

    ``ratio`` is (model + what the edit took at its peak) / (model + keys and residuals in float32; of ROME the averaged
    keys and the bare ones). ``work`` is the bound of a pass, if the lab has one; it is then a second edit of the
    process that is measured, as libraries keep some of what they take for a first.
    """
    facts, recipe = by_density(n, 2, seed), located(method).on(lab.arch, **overrides)
    edit(lab, facts if lab.work else facts[:2], recipe, moment_texts)
    each = 2 if (recipe.solver, recipe.met) == ("equality", "bare") else 1
    needed = 4 * n * len(recipe.layers) * (each * lab.arch.d_k + lab.arch.d_model)
    (_, peak), took = clock(lab, lambda: peak_memory(lab, lambda: edit(lab, facts, recipe, moment_texts)))
    sizes = {"work": lab.work, "model": lab.nbytes, "keys and residuals": needed, "peak": peak}
    told = {name: float("nan") if size is None else size / 1e6 for name, size in sizes.items()}
    ratio = (lab.nbytes + peak) / (lab.nbytes + needed)
    return pd.Series({"facts": n} | told | {"ratio": ratio, "seconds": took})


def peak_memory(lab: Lab, work: Callable[[], Any]) -> tuple[Any, int]:
    """(result, bytes above the start at the peak): of the CUDA allocator, or of this process, looked at every 2 ms.

    Pages of files (of libraries' code, of weights and caches being read) are not counted where the system tells them
    apart: it takes them back whenever it needs them.
    """
    if lab.anchor.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before

    def resident() -> int:
        seen = psutil.Process().memory_info()
        return seen.rss - getattr(seen, "shared", 0)

    gc.collect()
    trim()  # what is free, but still the process's, would hide what the work takes
    before = peak = resident()
    done = Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, max(peak, resident()) - before


def agreement(delta: Change, plain: Tensor) -> float:
    """Cosine between an update and its plain form."""
    return float(torch.nn.functional.cosine_similarity(delta.matrix().flatten(), plain.flatten(), dim=0))
