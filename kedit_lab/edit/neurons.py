"""Knowledge neurons (KN): find the MLP neurons that say today's answer, and rewrite what they write.

A neuron is an entry of a key; its value is a column of the MLP's output projection. Attribution is integrated gradients
of the answer's probability along the neuron's activation at the last prompt token (Dai et al. 2022, Eq. 2).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kedit_lab.edit.recipe import Neurons
from kedit_lab.edit.weights import Change, keep, put_back, summed, write
from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab
from kedit_lab.types import Delta, Fact, NoUpdate


def attributions(lab: Lab, prompt: Sequence[int], answer: int, layers: Sequence[int],
                 steps: int) -> Float[Tensor, "layers d_k"]:  # fmt: skip
    """Activation x mean gradient of P(answer) while a layer's activations at the last token grow from zero to theirs.

    One layer at a time, ``steps`` points from 0 to 1, both ends included (a single point is 0, as in EasyEdit's code).
    """
    last = len(prompt) - 1
    batch = lab.batch([prompt] * steps)
    with torch.no_grad(), record(lab, "key", layers) as seen:
        seen.forward(**lab.batch([prompt]), use_cache=False)
        states = {layer: seen["key", layer][0, last].clone() for layer in layers}
    share = torch.linspace(0, 1, steps, dtype=lab.anchor.dtype)
    rows = []
    for layer in layers:
        scaled = (share.to(states[layer])[:, None] * states[layer]).requires_grad_()
        with torch.enable_grad(), replace(lab, "key", layer, lambda h, s=scaled: torch.cat([h[:, :-1], s[:, None]], 1)):
            normed = lab.hidden(**batch)[:, last]
            said = lab.arch.logits(normed).float().softmax(-1)[:, answer].sum()
        (gradient,) = torch.autograd.grad(said, scaled)
        rows.append((states[layer].float() * gradient.float().mean(0)).to(lab.anchor.device))
    return torch.stack(rows)


def neurons(lab: Lab, fact: Fact, recipe: Neurons) -> tuple[Bool[Tensor, "layers d_k"], tuple[int, ...]]:
    """(which neurons carry the answer, the answer's ids): attribution above ``threshold`` times the largest.

    The answer is what the model says today, greedily, as many tokens as ``target_true`` (or ``target_new``) has; scores
    are averaged over them. Nothing is chosen where no attribution is positive.
    """
    row = lab.row(fact)
    length = len(lab.target(fact.target_true or fact.target_new))
    ids, answer, total = list(row.prompt), [], torch.zeros(len(recipe.layers), lab.arch.d_k, device=lab.anchor.device)
    for _ in range(length):
        with torch.no_grad():
            token = int(lab.arch.logits(lab.hidden(**lab.batch([ids]))[:, -1])[0].argmax())
        total += attributions(lab, ids, token, recipe.layers, recipe.steps) / length
        answer.append(token)
        ids.append(token)
    return (total > recipe.threshold * total.max()) & (total > 0), tuple(answer)


def train(lab: Lab, facts: Sequence[Fact], recipe: Neurons) -> tuple[dict[str, Change], list]:
    """Each chosen neuron's value gains the target's embedding and loses the current answer's; facts in order.

    The model is left as it was, bit for bit.
    """
    table = lab.model.get_input_embeddings().weight
    total: dict[str, Change] = {}
    originals: dict[str, Tensor] = {}
    try:
        for fact in facts:
            chosen, answer = neurons(lab, fact, recipe)
            new = table[list(lab.target(fact.target_new))].sum(0)
            shift = (new - table[list(answer)].sum(0)).detach().double().to(chosen.device)
            deltas = {
                lab.arch.mlp[layer].name: Delta(shift[:, None].clone(), mask.double()[:, None])
                for layer, mask in zip(recipe.layers, chosen, strict=True)
                if mask.any() and shift.any()
            }
            total = summed(total, deltas)
            keep(lab.arch, deltas, originals)
            write(lab.arch, deltas)
    finally:
        put_back(lab.arch, originals)
    if not total:
        raise NoUpdate("the update is zero: no neuron is above the threshold, or the model says these targets already")
    return total, []
