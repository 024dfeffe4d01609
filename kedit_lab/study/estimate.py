"""What N edits will cost on a model, before they are run: counted operations over a measured rate, memory from shapes.

An estimate: facts of a usual length, statistics in their cache, and all steps taken unless a number is given: an early
stop often ends targets after a few.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from kedit_lab.edit.recipe import AnyRecipe, Hyper, Neurons, Recipe, Tuning
from kedit_lab.edit.recipes import find
from kedit_lab.edit.targets import budget
from kedit_lab.model.arch import Arch
from kedit_lab.model.lab import Lab

PROMPT, TAIL, TARGET = 12, 8, 3  # tokens of a prompt, of what follows the lookup token (target included), of a target
METHODS = ("memit", "memit-merge", "pmet", "alphaedit", "eamet", "rome", "emmet", "ft-m", "sft", "r-sft", "lora")
PROBE = (8, 32)  # rows and tokens of the forward pass that is timed
SIDE = 768  # of the float64 matrices that are timed
LARGE = (1024, 8192)  # of the square matrices whose product shows the machine's rate: on a CPU, on another device


def block_size(arch: Arch) -> int:
    """Weights of one block's projections."""
    return sum(p.d_in * p.d_out for p in arch.inner[0])


def forward(arch: Arch, tokens: int, layers: int) -> int:
    """Floating-point operations of ``tokens`` through ``layers`` blocks: two per weight and token."""
    return 2 * tokens * layers * block_size(arch)


def head(arch: Arch, tokens: int) -> int:
    """Operations of the logits of some positions."""
    return 2 * tokens * arch.d_model * arch.head.weight.shape[0]


def operations(arch: Arch, recipe: AnyRecipe, n: int, steps: float | int | None = None) -> tuple[int, int]:
    """(in the model's precision, in float64) operations of an edit of ``n`` facts; every step is taken, or ``steps``.

    Targets: every step runs the tails forward and back (weights have no gradient, so twice a forward pass) through the
    blocks above the written one; keys and residuals: forward passes up to each layer; the solve: a factor of d_k³/3,
    once a layer, and products with N keys. Training: forward and back with gradients of weights, three times a pass.
    """
    if isinstance(recipe, Recipe):
        rows = n * (1 + recipe.prefixes)
        length = PROMPT + recipe.prefix_length * recipe.prefixes // (1 + recipe.prefixes)
        above = arch.layers - recipe.layers[-1] - 1
        step = 2 * (forward(arch, rows * TAIL, above) + head(arch, rows * TARGET))
        once = forward(arch, rows * (length + TAIL), arch.layers)
        read = sum(forward(arch, rows * length, layer + 1) for layer in recipe.layers)
        side = arch.d_k
        factor = 9 * side**3 if recipe.solver == "null-space" else side**3 // 3
        products = 4 * n * side**2 + n**2 * side if n < side else 2 * n * side * (side + arch.d_model)
        solve = len(recipe.layers) * (factor + products)
        return once + int((recipe.steps if steps is None else steps) * step) + read, solve
    passes = recipe.epochs * recipe.repeats if isinstance(recipe, Tuning) else 1
    passes = recipe.steps * arch.layers if isinstance(recipe, Neurons) else passes
    whole = forward(arch, n * (PROMPT + TARGET), arch.layers) + head(arch, n * (PROMPT + TARGET))
    return 3 * passes * whole, 0


def memory(lab: Lab, recipe: AnyRecipe, n: int) -> dict[str, int]:
    """Bytes of an edit at its peak, beside the model: ``statistics`` (of one layer, in float64: C and its factor, or
    its eigenvectors, d_k² numbers each), ``keys`` and residuals (float64, all layers) and ``work``.

    ``work`` is what one batched pass of the targets holds for its way back, or a trained weight's float32 copy,
    gradient and Adam's two moments.
    """
    arch = lab.arch
    if isinstance(recipe, Recipe):
        held = arch.layers * (10 * arch.d_model + 8 * arch.d_k) + 2 * arch.head.weight.shape[0]
        tokens = min(budget(lab), n * (1 + recipe.prefixes) * TAIL)
        keys = 8 * n * len(recipe.layers) * (arch.d_k + arch.d_model)
        return {"statistics": 16 * arch.d_k**2, "keys": keys, "work": tokens * held * lab.anchor.element_size()}
    if isinstance(recipe, Tuning) and recipe.rank:
        weights = sum(recipe.rank * (p.d_in + p.d_out) for at in recipe.layers for p in arch.inner[at])
    elif isinstance(recipe, Tuning):
        weights = sum(p.d_in * p.d_out for at in recipe.layers
                      for p in (arch.ffn(at) if recipe.weights == "ffn" else [arch.mlp[at]]))  # fmt: skip
    else:
        weights = sum(p.d_in * p.d_out for at in recipe.layers for p in arch.ffn(at))
    return {"statistics": 0, "keys": 0, "work": 16 * weights}


@torch.no_grad()
def rates(lab: Lab) -> tuple[float, float]:
    """Operations a second that this machine reaches: of a forward pass of this model, and of a float64 product."""
    rows, tokens = PROBE
    batch = lab.batch([[1 + i % 50 for i in range(tokens)]] * rows)
    square = torch.ones(SIDE, SIDE, dtype=torch.float64, device=lab.anchor.device)
    passing = forward(lab.arch, rows * tokens, lab.arch.layers)
    return passing / best_of(lab, lambda: lab.hidden(**batch)), 2 * SIDE**3 / best_of(lab, lambda: square @ square)


def best_of(lab: Lab, work: Callable[[], Any], times: int = 3) -> float:
    """The least seconds of a few runs behind one to warm up, the device waited for."""
    seconds = []
    for _ in range(times + 1):
        began = now(lab)
        work()
        seconds.append(now(lab) - began)
    return min(seconds[1:])


def now(lab: Lab) -> float:
    """The clock, once the device has done what it was told."""
    if lab.anchor.is_cuda:
        torch.cuda.synchronize(lab.anchor.device)
    return time.perf_counter()


@torch.no_grad()
def matrix_rate(lab: Lab) -> float:
    """Operations a second of a product of large square matrices in the model's precision: the most one can have."""
    side = LARGE[0 if lab.anchor.is_cpu else 1]
    square = torch.ones(side, side, dtype=lab.anchor.dtype, device=lab.anchor.device)
    return 2 * side**3 / best_of(lab, lambda: square @ square)


def estimate(lab: Lab, n: int = 100, methods: Sequence[str | AnyRecipe] = METHODS,
             rate: tuple[float, float] | None = None, steps: float | int | None = None) -> pd.DataFrame:  # fmt: skip
    """An estimate of ``n`` edits by method, none of them run: one row per method, no weight is touched.

    Columns: ``layers`` and ``values`` (which of the recipe's values apply here, and whose they are), ``seconds`` (of
    every step), and megabytes: ``model``, ``statistics``, ``keys``, ``work`` and their sum ``total``.
    ``rate`` (operations a second in the model's precision and in float64) is measured unless given; ``steps`` is the
    mean number of steps of a target where it is known (``kl.suggest`` counts them). Raises ValueError for an unknown
    method or where ``n`` is no positive number.
    """
    if n < 1:
        raise ValueError(f"n is {n}; give the number of facts, at least one")
    rate = rate or rates(lab)
    rows = []
    for method in methods:
        recipe = find(method).on(lab.arch)
        if isinstance(recipe, Hyper):
            raise ValueError(f"{recipe.name} needs a hypernetwork trained for this model; there is nothing to count")
        single, double = operations(lab.arch, recipe, n, steps)
        needed = {"model": lab.nbytes} | memory(lab, recipe, n)
        told = {"method": recipe.name, "layers": ", ".join(map(str, recipe.layers)), "values": recipe.values}
        told["seconds"] = single / rate[0] + double / rate[1]
        rows.append(told | {name: size / 1e6 for name, size in needed.items()} | {"total": sum(needed.values()) / 1e6})
    return pd.DataFrame(rows).set_index("method")
