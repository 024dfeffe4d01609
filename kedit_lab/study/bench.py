"""What an edit costs: milliseconds per fact, against the same computation written plainly, one fact at a time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
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


def bench_methods(lab: Lab, n: int = 100, names: Sequence[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Seconds of one edit of ``n`` facts with every locate-then-edit recipe, and the ratio to memit, in this process.

    Statistics are read from their cache and not counted. Facts are distinct; ``steps`` is the mean length of a curve.
    """
    names = names or [name for name, recipe in TABLE.items() if isinstance(recipe, Recipe)]
    facts = by_density(n, seed=seed)
    rows = []
    for name in ["memit", *(name for name in names if name != "memit")]:
        edit(lab, facts[:2], name)  # warm up, and fill the cache
        made = edit(lab, facts, name)
        seconds = sum(time for stage, time in made.seconds.items() if stage != "statistics")
        steps = sum(map(len, made.curves)) / len(made.curves)
        rows.append({"method": name, "seconds": seconds, "ratio": 1.0, "steps": steps} | made.seconds)
    frame = pd.DataFrame(rows).set_index("method")
    return frame.assign(ratio=frame["seconds"] / frame.loc["memit", "seconds"])


def agreement(delta: Delta, plain: Tensor) -> float:
    """Cosine between a factored update and a plain one."""
    return float(torch.nn.functional.cosine_similarity(delta.matrix().flatten(), plain.flatten(), dim=0))
