"""What an edit costs: milliseconds per fact, against the same computation written plainly, one fact at a time."""

import gc
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

import pandas as pd
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit import targets
from kedit_lab.edit.groups import group
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import TABLE, find
from kedit_lab.edit.run import edit
from kedit_lab.edit.solvers import Preserved, ridge
from kedit_lab.extract.keys import grouped_mean, keys, streams
from kedit_lab.extract.moments import second_moment
from kedit_lab.facts.sets import by_density
from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import fact_row
from kedit_lab.types import Delta, Fact


def plain_keys(lab: Lab, facts: Sequence[Fact], layer: int, prefixes: Sequence[str]) -> Float[Tensor, "facts d_k"]:
    """Keys one fact and one context at a time, each with a whole forward pass."""
    found = []
    for fact in facts:
        states = []
        for prefix in ("", *prefixes):
            row = fact_row(lab.tokenizer, fact, prefix)
            with record(lab, "key", [layer]) as seen, torch.no_grad():
                seen.forward(**lab.batch([row.prompt]))
            states.append(seen["key", layer][0, row.lookup])
        found.append(grouped_mean(torch.stack(states)[None])[0])
    return torch.stack(found)


def plain_target(lab: Lab, fact: Fact, recipe: Recipe, prefixes: Sequence[str]) -> Float[Tensor, " d_model"]:
    """MEMIT's z of one fact, written as the paper says: every step is a forward pass over all layers and positions."""
    layer = recipe.layers[-1]
    rows = [asked.row for asked in targets.questions(lab, [fact], [[0]], recipe, prefixes)[0]]
    texts, drift = rows[:-1], len(rows) - 1
    batch = lab.batch([row.ids for row in rows])
    lookup = torch.tensor([row.lookup for row in rows])
    h = streams(lab, [fact], layer)[0].float()
    scale = recipe.lr * (h.norm() / len(h) ** 0.5 if recipe.lr_unit == "hidden" else 1.0)
    units = torch.zeros_like(h).requires_grad_()
    adam, reference = torch.optim.Adam([units], lr=1.0), None
    for step in range(recipe.steps):
        delta = scale * units
        with replace(
            lab, "block", layer, lambda hidden, d=delta: hidden.index_put((torch.arange(len(rows)), lookup), d, True)
        ):
            logp = lab.model(**batch, use_cache=False).logits.float().log_softmax(-1)
        said = [
            torch.stack([logp[i, at, t] for at, t in zip(r.answers, r.target, strict=True)]).mean()
            for i, r in enumerate(texts)
        ]
        now = logp[drift, lookup[drift]]
        reference = now.detach() if reference is None else reference
        loss = -torch.stack(said).mean() + recipe.kl * (now.exp() * (now - reference)).sum()
        loss = loss + recipe.decay * delta.norm() / h.norm() ** 2
        if step == recipe.steps - 1 or loss < recipe.stop:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            units *= (recipe.clamp * h.norm() / (scale * units).norm().clamp_min(1e-12)).clamp_max(1.0)
    return h + scale * units.detach()


def plain_solve(k: Tensor, r: Tensor, moment: Tensor, lam: float) -> Float[Tensor, "d_out d_k"]:
    """R Kᵀ (λC + K Kᵀ)⁻¹ by the explicit inverse."""
    k, r = k.double(), r.double()
    return r.T @ k @ torch.linalg.inv(lam * moment.double() + k.T @ k)


def clock(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds)."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def bench(lab: Lab, sizes: Sequence[int] = (1, 10, 100), method: str = "memit", seed: int = 0) -> pd.DataFrame:
    """Milliseconds per fact of keys, targets and solve, batched and plain, their ratio, and the agreement of ΔW.

    Both forms run in this process, with the same prefixes, step size and early stop; statistics are not counted.
    """
    recipe = find(method).on(lab.arch)
    layer, prefixes = recipe.layers[-1], lab.prefixes(recipe.prefixes, recipe.prefix_length)
    moment = second_moment(lab, layer)
    preserved = Preserved(moment, recipe.lam)
    _ = preserved.factor
    keys(lab, by_density(2, seed=seed), layer, prefixes)  # warm up
    rows = []
    for size in sizes:
        facts = by_density(size, seed=seed)
        fast, plain = {}, {}
        k, fast["keys"] = clock(lambda f=facts: keys(lab, f, layer, prefixes))
        slow_k, plain["keys"] = clock(lambda f=facts: plain_keys(lab, f, layer, prefixes))
        found, fast["targets"] = clock(
            lambda f=facts: targets.values(lab, f, group(lab, f, recipe.group, layer), recipe, prefixes)
        )
        slow_z, plain["targets"] = clock(
            lambda f=facts: torch.stack([plain_target(lab, x, recipe, prefixes) for x in f])
        )
        now = streams(lab, facts, layer).float()
        delta, fast["solve"] = clock(lambda k=k, r=found.z - now: ridge(k, r, preserved))
        slow, plain["solve"] = clock(lambda k=slow_k, r=slow_z - now: plain_solve(k, r, moment, recipe.lam))
        fast["all"], plain["all"] = sum(fast.values()), sum(plain.values())
        for stage in fast:
            rows.append({"facts": size, "stage": stage, "ms per fact": 1000 * fast[stage] / size,
                         "plain, ms per fact": 1000 * plain[stage] / size, "ratio": plain[stage] / fast[stage],
                         "cosine of ΔW": agreement(delta, slow)})  # fmt: skip
    return pd.DataFrame(rows)


def bench_methods(
    lab: Lab, n: int = 100, names: Sequence[str] | None = None, steps: int = 8, seed: int = 0
) -> pd.DataFrame:
    """Seconds of one edit of ``n`` facts with every locate-then-edit recipe, and the ratio to memit, in this process.

    As shipped, where recipes stop at different times (``steps`` is the mean length of a curve), and with the same
    number of ``steps`` and no early stop for all ("equal seconds", "equal ratio"): what the method itself costs.
    Statistics are read from their cache and not counted. Facts are distinct.
    """
    names = names or [name for name, recipe in TABLE.items() if isinstance(recipe, Recipe)]
    facts = by_density(n, seed=seed)
    rows = []
    for name in ["memit", *(name for name in names if name != "memit")]:
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
    """Peak memory (MB) of one edit of ``n`` facts, statistics in their cache, beside what it cannot do without.

    ``ratio`` is (model + what the edit took at its peak) / (model + keys and residuals in float32).
    """
    facts, recipe = by_density(n, 2, seed), find(method).on(lab.arch, **overrides)
    edit(lab, facts[:2], recipe, moment_texts)
    model = sum(p.numel() * p.element_size() for p in lab.model.parameters())
    needed = 4 * n * len(recipe.layers) * (lab.arch.d_k + lab.arch.d_model)
    _, peak = peak_memory(lab, lambda: edit(lab, facts, recipe, moment_texts))
    told = {"facts": n, "model": model / 1e6, "keys and residuals": needed / 1e6, "peak": peak / 1e6}
    return pd.Series(told | {"ratio": (model + peak) / (model + needed)})


def peak_memory(lab: Lab, work: Callable[[], Any]) -> tuple[Any, int]:
    """(result, bytes above the start at the peak): of the CUDA allocator, or of this process, looked at every 2 ms."""
    if lab.anchor.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return work(), torch.cuda.max_memory_allocated() - before
    resident = lambda: psutil.Process().memory_info().rss  # noqa: E731
    gc.collect()
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


def agreement(delta: Delta, plain: Tensor) -> float:
    """Cosine between a factored update and a plain one."""
    return float(torch.nn.functional.cosine_similarity(delta.matrix().flatten(), plain.flatten(), dim=0))
