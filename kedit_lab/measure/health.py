"""Is the model still well? What an edit or a sequence of edits does to text that has nothing to do with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.tokens import encode

CHUNK = 32


@dataclass(frozen=True)
class Reference:
    """Fixed texts, unrelated prompts, and what the unedited model said of both."""

    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    said: Float[Tensor, "prompts vocab"]
    norms: dict[str, float]

    @classmethod
    def of(cls, lab: Lab, texts: Sequence[str], prompts: Sequence[str]) -> "Reference":
        """Ask the model as it is now. Raises ValueError without texts or prompts."""
        if not texts or not prompts:
            raise ValueError(f"{len(texts)} texts and {len(prompts)} prompts given; health needs at least one of each")
        norms = {p.name: float(p.module.weight.double().norm()) for row in lab.arch.inner for p in row}
        return cls(tuple(texts), tuple(prompts), next_tokens(lab, prompts), norms)


def health(lab: Lab, reference: Reference) -> dict[str, float]:
    """``perplexity`` of the fixed texts, ``kl`` (nats; unedited ‖ now) behind the unrelated prompts, ``growth`` (the
    largest ratio of a block weight's norm to what it was) and ``finite`` (1 if every block weight is)."""
    weights = [p for row in lab.arch.inner for p in row]
    if not all(p.module.weight.isfinite().all() for p in weights):
        nan = float("nan")
        return {"perplexity": nan, "kl": nan, "growth": nan, "finite": 0.0}
    now = next_tokens(lab, reference.prompts)
    kl = (reference.said.exp() * (reference.said - now)).sum(-1).mean()
    growth = max(float(p.module.weight.double().norm()) / max(reference.norms[p.name], 1e-12) for p in weights)
    return {"perplexity": perplexity(lab, reference.texts), "kl": float(kl), "growth": growth, "finite": 1.0}


@torch.no_grad()
def next_tokens(lab: Lab, prompts: Sequence[str]) -> Float[Tensor, "prompts vocab"]:
    """Log-probabilities of what follows each prompt."""
    rows = [lab.encode(prompt)[0] for prompt in prompts]
    found = []
    for batch in chunks(rows, CHUNK):
        normed = lab.hidden(**lab.batch(batch))
        last = torch.tensor([len(row) - 1 for row in batch], device=normed.device)
        spots = normed[torch.arange(len(batch), device=normed.device), last]
        found.append(lab.arch.logits(spots).double().log_softmax(-1))
    return torch.cat(found)


@torch.no_grad()
def perplexity(lab: Lab, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood per token, over all tokens of the texts that have one before them."""
    total, count = 0.0, 0
    for batch in chunks([encode(lab.tokenizer, text)[0] for text in texts], CHUNK):
        inputs = lab.batch(batch)
        logp = lab.arch.logits(lab.hidden(**inputs)).double().log_softmax(-1)
        ids, there = (inputs[name][:, 1:].to(logp.device) for name in ("input_ids", "attention_mask"))
        said, mask = logp[:, :-1].gather(2, ids[..., None])[..., 0], there.bool()
        total, count = total - float(said[mask].sum()), count + int(mask.sum())
    if not count:
        raise ValueError("the texts hold no token with another before it; give longer ones")
    return float(torch.tensor(total / count).exp())
