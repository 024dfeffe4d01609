"""Editing by gradient descent on named weights: FT, FT-L, FT-M, SFT, LoRA, R-SFT. One loop, the recipe decides.

Weights are trained as float32 copies, so that small steps are not lost in a low-precision model, and put back bit for
bit afterwards; what is returned is their change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from warnings import catch_warnings, simplefilter

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from kedit_lab.edit.recipe import Tuning
from kedit_lab.model.arch import Projection
from kedit_lab.model.hooks import surely
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.offload import runs_on
from kedit_lab.model.process import own_chance
from kedit_lab.model.tokens import Row
from kedit_lab.types import Delta, Dense, Fact, NoUpdate

Curves = list[list[float]]


def chosen(lab: Lab, recipe: Tuning) -> list[Projection]:
    """The projections that a recipe trains: output projections, whole MLPs, or what enters attention."""
    found = []
    for layer in recipe.layers:
        mlp = lab.arch.ffn(layer)
        if recipe.weights == "attention":
            outside = {p.name for p in mlp} | {lab.arch.attention[layer].name}
            found += [p for p in lab.arch.inner[layer] if p.name not in outside]
        else:
            found += mlp if recipe.weights == "ffn" else [lab.arch.mlp[layer]]
    return found


def loss(lab: Lab, rows: Sequence[Row], objective: str) -> Float[Tensor, ""]:
    """Mean over rows of the mean negative log-likelihood of the tokens that the objective scores."""
    logp = lab.model(**lab.batch([row.ids for row in rows]), use_cache=False).logits.float().log_softmax(-1)
    scored = []
    for i, row in enumerate(rows):
        whole = row.prompt + row.target
        last = len(row.prompt) - 1
        spots = {
            "target": (list(row.answers), row.target),
            "prompt_last": ([last] * len(row.target), row.target),
            "text": (list(range(len(whole) - 1)), whole[1:]),
        }
        at, tokens = spots[objective]
        scored.append(-logp[i, at, list(tokens)].mean())
    return torch.stack(scored).mean()


def train(lab: Lab, facts: Sequence[Fact], recipe: Tuning) -> tuple[dict[str, Delta | Dense], Curves]:
    """(change of every trained weight, loss curve of every batch). The model is left as it was, bit for bit."""
    rows = [lab.row(fact) for fact in facts]
    weights = chosen(lab, recipe)
    with (
        own_chance(),
        (adapters if recipe.rank else masters)(lab, weights, recipe) as (copies, publish, read),
    ):
        torch.manual_seed(recipe.seed)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[recipe.optimizer]
        curves = epochs(lab, rows, recipe, kind(copies, lr=recipe.lr), publish)
        changes = read()
    if not any(delta.norm() for delta in changes.values()):
        raise NoUpdate("the update is zero: the loss of every fact is under stop already, or lr is too small", curves)
    return changes, curves


def epochs(lab: Lab, rows: Sequence[Row], recipe: Tuning, optimizer: torch.optim.Optimizer,
           publish: Callable[[], None]) -> Curves:  # fmt: skip
    """Pass over the facts: up to ``repeats`` consecutive steps a batch, none under ``stop`` (MM4KE, Algorithm 1)."""
    batches = list(chunks(rows, recipe.batch))
    curves: Curves = [[] for _ in batches]
    for _ in range(recipe.epochs):
        firsts = []
        for batch, curve in zip(batches, curves, strict=True):
            for repeat in range(recipe.repeats):
                with torch.enable_grad():
                    found = loss(lab, batch, recipe.objective)
                curve.append(float(found.detach()))
                if not isfinite(curve[-1]):
                    raise ValueError(f"the loss became {curve[-1]} in training; lower lr (now {recipe.lr})")
                firsts += [curve[-1]] if repeat == 0 else []
                if curve[-1] < recipe.stop:
                    break
                optimizer.zero_grad()
                found.backward()
                optimizer.step()
                publish()
        if max(firsts) < recipe.stop:
            break
    return curves


@contextmanager
def masters(_lab: Lab, weights: Sequence[Projection], recipe: Tuning) -> Iterator[tuple]:
    """(float32 copies to optimise, what writes them into the model, what reads the change); weights come back."""
    modules = [projection.module for projection in weights]
    originals = [module.weight.detach().clone() for module in modules]
    copies = [original.float().clone().requires_grad_() for original in originals]
    handles = []

    def publish() -> None:
        with torch.no_grad():
            for module, copy, original in zip(modules, copies, originals, strict=True):
                if recipe.epsilon:
                    copy.copy_(copy.clamp(original.float() - recipe.epsilon, original.float() + recipe.epsilon))
                module.weight.copy_(copy)

    def read() -> dict[str, Delta | Dense]:
        return {
            projection.name: Dense(projection.stored(copy.detach() - original.float()))
            for projection, copy, original in zip(weights, copies, originals, strict=True)
        }

    def collect(copy: Tensor) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            copy.grad, weight.grad = weight.grad.to(copy), None

        return hook

    @torch.no_grad()
    def undo() -> None:
        for handle in handles:
            handle.remove()
        for module, original in zip(modules, originals, strict=True):
            module.weight.requires_grad_(False)
            module.weight.grad = None
            module.weight.copy_(original)

    try:
        for module, copy in zip(modules, copies, strict=True):
            module.weight.requires_grad_(True)
            handles.append(module.weight.register_post_accumulate_grad_hook(collect(copy)))
        yield copies, publish, read
    finally:
        surely(undo)


@contextmanager
def adapters(lab: Lab, weights: Sequence[Projection], recipe: Tuning) -> Iterator[tuple]:
    """Like ``masters``, but peft's LoRA factors are optimised; the weights themselves never change."""
    names = [projection.name.removesuffix(".weight") for projection in weights]
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=names,
                        fan_in_fan_out=any(p.transposed for p in weights), task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(recipe.seed)
    with adapted(lab, config) as wrapped:
        layers = {name: wrapped.base_model.model.get_submodule(name) for name in names}
        for layer in layers.values():
            layer.lora_dropout.train()
            for factor in (layer.lora_A, layer.lora_B):
                factor.to(runs_on(layer.base_layer))  # peft puts them where the weight is, which may rest elsewhere
        yield (
            [p for p in wrapped.parameters() if p.requires_grad],
            lambda: None,
            lambda: {f"{name}.weight": factors(layer) for name, layer in layers.items()},
        )


@contextmanager
def adapted(lab: Lab, config: LoraConfig) -> Iterator[PeftModel]:
    """The model with peft's LoRA modules inside the context, as it was behind it."""
    parallel = {name: old for name, old in vars(lab.model.config).items() if name == "pretraining_tp"}  # peft sets it
    try:
        with catch_warnings():
            simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
            wrapped = get_peft_model(lab.model, config)
        yield wrapped
    finally:
        surely(partial(unwrap, lab.model))
        vars(lab.model.config).update(parallel)


def unwrap(model: torch.nn.Module) -> None:
    """Take peft's modules out of a model, however far they have come in."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(module, name, child.get_base_layer())
    model.eval().requires_grad_(False)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(name, None)


def factors(layer: torch.nn.Module) -> Delta:
    """ΔW = scale · B A of a peft LoRA layer."""
    a, b = (getattr(layer, side)["default"].weight.detach().double() for side in ("lora_A", "lora_B"))
    return Delta(layer.scaling["default"] * b, a.T.contiguous())
