"""What an edit's arithmetic is: counted from the shape and the tokens, measured stage by stage, beside the machine's.

Products of activations with weights are counted, two operations per weight and position, as they are nearly all there
is; attention's own products (a few percent at the length of a fact) and what works by element are not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from kedit_lab.edit.bundles import Asked, folded
from kedit_lab.edit.groups import group
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import find
from kedit_lab.edit.solvers import Preserved, ridge
from kedit_lab.edit.targets import Targets, questions, values
from kedit_lab.extract.keys import keys
from kedit_lab.model.lab import Lab
from kedit_lab.study.estimate import block_size, head, matrix_rate, now
from kedit_lab.types import Fact

STAGES = ("embedding", "lower blocks", "upper blocks", "head", "optimiser", "rest")
ADAM = 12  # operations of one of Adam's steps on one number


def distinct(rows: Sequence[tuple[int, ...]]) -> int:
    """Positions whose states differ: a causal model's state depends on the ids up to it alone; equal starts are one."""
    seen = set()
    for row in rows:
        start = 0
        for token in row:
            start = hash((start, token))
            seen.add(start)
    return len(seen)


def needed(lab: Lab, facts: Sequence[Fact], groups: Sequence[Sequence[int]], recipe: Recipe, prefixes: Sequence[str],
           passes: Sequence[int]) -> dict[str, int]:  # fmt: skip
    """Operations per stage that the values of all groups cannot do without; ``passes`` is the number of each group's.

    Once: every distinct position in the blocks up to the written one, those before the lookup token in the blocks above
    it (in the last up to its attention), and the projections into the first attention above of those behind the lookup
    token. At every pass, and on the way back that all but a group's last take: all else in the blocks above of the
    positions from the lookup token on, the last attention's output, its MLP and the head at those that are read.
    """
    asked = [folded(of_group) for of_group in questions(lab, facts, groups, recipe, prefixes)]
    rows = [a.row for of_group in asked for a in of_group]
    start = recipe.layers[-1] + 1
    size = lambda some: sum(p.d_in * p.d_out for p in some)  # noqa: E731
    above = start < lab.arch.layers
    last = size([*lab.arch.ffn(-1), lab.arch.attention[-1]]) if above else 0
    upper = (lab.arch.layers - start) * block_size(lab.arch) - last
    inner = size(lab.arch.attention_inner(start)) if above else 0
    ways = [2 * n - 1 for n in passes]
    along = lambda count: sum(n * sum(map(count, of)) for n, of in zip(ways, asked, strict=True))  # noqa: E731
    every, first, read = along(lambda a: a.length), along(lambda _a: 1), along(answers)
    behind = sum(a.length - 1 for of_group in asked for a in of_group)
    before = distinct([row.ids[: row.lookup] for row in rows])
    return {
        "embedding": 0,
        "lower blocks": 2 * distinct([row.ids for row in rows]) * start * block_size(lab.arch),
        "upper blocks": 2 * (before * upper + every * (upper - inner) + (first + behind) * inner + read * last),
        "head": head(lab.arch, read),
        "optimiser": ADAM * lab.arch.d_model * recipe.reuse * sum(n - 1 for n in passes),
        "rest": 0,
    }


def answers(asked: Asked) -> int:
    """Positions of a row that are read: those of its target's tokens, and the one where drift is measured."""
    return len(asked.row.target) + asked.drift


def key_products(lab: Lab, facts: Sequence[Fact], layer: int, prefixes: Sequence[str]) -> int:
    """Operations that the keys of one layer cannot do without: of positions before the lookup token nothing is needed
    in that layer but its attention, of the lookup token all up to the projection that is edited."""
    arch = lab.arch
    rows = lab.prompts(facts, ("", *prefixes))
    before = distinct([ids[:at] for ids, at in rows])
    lookups = distinct([ids[: at + 1] for ids, at in rows]) - before
    mlp, edited = sum(p.d_in * p.d_out for p in arch.ffn(layer)), arch.d_k * arch.d_model
    whole = (layer + 1) * block_size(arch)
    return 2 * (before * (whole - mlp) + lookups * (whole - edited))


def solve_products(n: int, d_k: int, d_out: int) -> int:
    """Operations of the ridge solve behind the factor of λC: with few facts (Woodbury), or by a factor of its own."""
    if n < d_k:
        return 2 * n * d_k**2 + 4 * n**2 * d_k + 2 * n**3 // 3
    return 2 * n * d_k**2 + 2 * n * d_out * d_k + d_k**3 // 3 + 2 * d_out * d_k**2


def plainly(lab: Lab, facts: Sequence[Fact], recipe: Recipe, prefixes: Sequence[str], passes: Sequence[int]) -> int:
    """Operations of the plain form: all positions, padding too, through all blocks and the head at every pass, and back
    through the blocks above the written one."""
    arch, total = lab.arch, 0
    start = recipe.layers[-1] + 1
    for fact, n in zip(facts, passes, strict=True):
        rows = [a.row for a in questions(lab, [fact], [[0]], recipe, prefixes)[0]]
        tokens = len(rows) * max(len(row.ids) for row in rows)
        blocks = n * arch.layers + (n - 1) * (arch.layers - start)
        total += (
            2 * (tokens * blocks + (rows[0].lookup + 1) * start) * block_size(arch)
        )  # the current value is read too
        total += (2 * n - 1) * head(arch, tokens)
    return total


def products(counter: FlopCounterMode) -> int:
    """What a counter has seen of ``mm`` and ``addmm``."""
    seen = counter.get_flop_counts().get("Global", {})
    return sum(seen.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


class Watcher:
    """Notes by how much ``read()`` (a clock, a counter) advances from one mark to the next, by the stage that ends."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read, self.last = read, read()
        self.spent = dict.fromkeys(STAGES, 0.0)

    def mark(self, stage: str) -> None:
        seen = self.read()
        self.spent[stage] += seen - self.last
        self.last = seen

    def around(self, module: nn.Module, stage: str) -> Iterator[Any]:
        """Hooks that tell a module's forward pass from what came before it, and its way back from what came then."""

        def left(_module: nn.Module, args: tuple, _output: Any) -> None:
            self.mark(stage)
            if args and isinstance(args[0], Tensor) and args[0].requires_grad:
                args[0].register_hook(lambda _gradient: self.mark(stage))

        yield module.register_forward_pre_hook(lambda *_: self.mark("rest"))
        yield module.register_forward_hook(left, always_call=True)


@contextmanager
def staged(lab: Lab, start: int, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """By how much ``read()`` advances in each of STAGES while targets written below block ``start`` are sought.

    Losses go to the head on their way back; what is between stages is the rest (words to ids, masks, the bookkeeping).
    """
    watcher = Watcher(read)
    parts = [(lab.model.get_input_embeddings(), "embedding"), (lab.arch.head, "head")]
    parts += [(block, "lower blocks" if i < start else "upper blocks") for i, block in enumerate(lab.arch.blocks)]
    with ExitStack() as stack:
        for module, stage in parts:
            for handle in watcher.around(module, stage):
                stack.callback(handle.remove)
        for register, stage in (
            (register_optimizer_step_pre_hook, "rest"),
            (register_optimizer_step_post_hook, "optimiser"),
        ):
            stack.callback(register(lambda *_, s=stage: watcher.mark(s)).remove)
        yield watcher.spent
        watcher.mark("rest")


def stages(lab: Lab, facts: Sequence[Fact], method: str | Recipe = "memit",
           **overrides: Any) -> tuple[pd.DataFrame, pd.Series]:  # fmt: skip
    """(where the time of an edit of one layer goes, the targets' arithmetic beside the plain form's).

    The table has one row per stage, and all: ``seconds`` and their ``share``, 10⁹ operations ``needed``, and ``done``
    with padding and what is thrown away (STAGES alone), and the ``share of the rate``: needed operations a second over
    what a product of large matrices reaches here in the model's precision (the solve is in float64). The series: 10⁹
    operations of the ``plain`` form, the ``floor`` (needed / plain), where the batched form ``stands`` (done / plain),
    and the ``rate`` (10⁹ a second).
    """
    recipe = find(method).on(lab.arch, **overrides)
    prefixes, layer = lab.prefixes(recipe.prefixes, recipe.prefix_length), recipe.layers[-1]
    groups = group(lab, facts, recipe.group, layer, recipe.similarity, recipe.token)
    work = partial(values, lab, facts, groups, recipe, prefixes)
    work()  # warm up
    with staged(lab, layer + 1, partial(now, lab)) as seconds:
        found = work()
    with FlopCounterMode(display=False) as counter, staged(lab, layer + 1, partial(products, counter)) as done:
        work()
    passes, rate = [len(curve) for curve in found.curves], matrix_rate(lab)
    least = needed(lab, facts, groups, recipe, prefixes, passes)
    table = pd.DataFrame({"seconds": seconds, "needed": least, "done": done})
    each = [passes[g] for i in range(len(facts)) for g, members in enumerate(groups) if i in members]
    whole = plainly(lab, facts, recipe, prefixes, each) / 1e9
    told = {"plain": whole, "floor": sum(least.values()) / 1e9 / whole, "stands": sum(done.values()) / 1e9 / whole}
    for name, row in apart(lab, facts, recipe, prefixes, found).items():
        table.loc[name] = row
    table.loc["all"] = table.sum()
    table[["needed", "done"]] /= 1e9
    table.insert(1, "share", table["seconds"] / table.loc["all", "seconds"])
    table["share of the rate"] = table["needed"] * 1e9 / table["seconds"] / rate
    return table, pd.Series(told | {"rate": rate / 1e9})


def apart(lab: Lab, facts: Sequence[Fact], recipe: Recipe, prefixes: Sequence[str],
          found: Targets) -> dict[str, dict[str, float]]:  # fmt: skip
    """Seconds and needed operations of the last layer's keys and of its solve, behind the factor of λC."""
    layer = recipe.layers[-1]
    k = keys(lab, facts, layer, prefixes or None)
    preserved = Preserved(torch.eye(lab.arch.d_k, device=k.device), recipe.lam_of(layer))
    _ = preserved.factor  # once a layer, and kept
    times = [now(lab)]
    for work in (
        lambda: keys(lab, facts, layer, prefixes or None),
        lambda: ridge(k, found.z - found.h, preserved),
    ):
        work()
        times.append(now(lab))
    return {
        "keys": {"seconds": times[1] - times[0], "needed": key_products(lab, facts, layer, prefixes)},
        "solve": {"seconds": times[2] - times[1], "needed": solve_products(len(facts), lab.arch.d_k, lab.arch.d_model)},
    }
