"""The plain form of MEMIT: one fact at a time, every step a whole forward pass, the inverse written out.

Nothing is cached, shared or left out, and it stops as early as the batched form: ``kedit-lab bench`` compares the two.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.edit import targets
from kedit_lab.edit.recipe import Recipe
from kedit_lab.extract.keys import grouped_mean, streams
from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab
from kedit_lab.types import Fact


def plain_keys(lab: Lab, facts: Sequence[Fact], layer: int, prefixes: Sequence[str]) -> Float[Tensor, "facts d_k"]:
    """Keys one fact and one context at a time, each with a whole forward pass."""
    found = []
    for fact in facts:
        states = []
        for prefix in ("", *prefixes):
            row = lab.row(fact, prefix)
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
    lookup, each = torch.tensor([row.lookup for row in rows]), torch.arange(len(rows))
    h = streams(lab, [fact], layer)[0].float()
    scale = recipe.lr * (h.norm() / len(h) ** 0.5 if recipe.lr_unit == "hidden" else 1.0)
    units = torch.zeros_like(h).requires_grad_()
    adam, reference = torch.optim.Adam([units], lr=1.0), None
    for step in range(recipe.steps):
        delta = scale * units
        added = lambda h, d=delta: h.index_put((each.to(h.device), lookup.to(h.device)), d.to(h), True)  # noqa: E731
        with replace(lab, "block", layer, added):
            logp = lab.model(**batch, use_cache=False).logits.float().log_softmax(-1)
        said = [
            torch.stack([logp[i, at, t] for at, t in zip(r.answers, r.target, strict=True)]).mean()
            for i, r in enumerate(texts)
        ]
        now = logp[drift, lookup[drift]]
        reference = now.detach() if reference is None else reference
        loss = -torch.stack(said).mean() + recipe.kl * (now.exp() * (now - reference)).sum()
        loss = loss + recipe.decay * (delta.norm() / h.norm() ** 2).to(loss.device)
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
