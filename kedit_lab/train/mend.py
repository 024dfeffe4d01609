"""Training MEND's editor for a model: edits must hold on paraphrases and leave neighbours alone (MEND, Eq. 4)."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.edit.finetune import loss
from kedit_lab.edit.mend import Editor, edited, edited_weights, gradients
from kedit_lab.edit.recipes import find
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.health import next_tokens
from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import Row
from kedit_lab.types import Fact

POOL = 600  # facts about as many subjects that the editor is trained on
EDIT_WEIGHT, LOCALITY_WEIGHT = 0.1, 1.0  # as published


def train_mend(lab: Lab, path: Path, facts: Sequence[Fact] | None = None, steps: int = 1200, rows: int = 16,
               lr: float = 1e-3, seed: int = 0, progress: bool = True) -> list[float]:  # fmt: skip
    """Train an editor of the last three blocks' MLPs (the layers of ``mend``) and write it; returns the mean loss of
    every 50 steps, and of those left at the end.

    Each step edits ``rows`` of the facts (600 of the lab world unless given) at once, every row with its own edit.
    Adam, cosine descent to zero.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; train for at least one")
    torch.manual_seed(seed)
    rng = random.Random(seed)
    facts = list(facts or by_density(POOL, seed=10_000 + seed))
    weights = edited_weights(lab, find("mend").on(lab.arch).layers)
    editor = Editor([p.name for p in weights], [(p.d_in, p.d_out) for p in weights]).to(lab.anchor.device)
    normalise(lab, editor, facts[:200])
    adam = torch.optim.Adam(editor.parameters(), lr=lr)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    curve, shown = [], []
    for step in (bar := tqdm(range(steps), desc="MEND", mininterval=5, disable=not progress)):
        total = objective(lab, editor, rng.sample(facts, rows), rng)
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(editor.parameters(), 100.0)
        adam.step()
        fall.step()
        shown.append(float(total.detach()))
        if len(shown) == 50 or step == steps - 1:
            curve.append(sum(shown) / len(shown))
            bar.set_postfix(loss=f"{curve[-1]:.3f}")
            shown = []
    editor.write(path, lab.fingerprint())
    return curve


def normalise(lab: Lab, editor: Editor, facts: Sequence[Fact]) -> None:
    """Means and deviations of inputs and gradients over some facts."""
    weights = [lab.arch.weight(name) for name in editor.names]
    for index, found in enumerate(gradients(lab, [lab.row(fact) for fact in facts], weights)):
        both = torch.cat([found.u, found.d], -1)[found.mask]
        editor.get_buffer(f"mean{index}").copy_(both.mean(0))
        editor.get_buffer(f"std{index}").copy_(both.std(0).clamp_min(1e-6))


def objective(lab: Lab, editor: Editor, facts: Sequence[Fact], rng: random.Random) -> Tensor:
    """0.1 · NLL of the targets behind paraphrases + KL of the next token behind neighbours' prompts."""
    weights = [lab.arch.weight(name) for name in editor.names]
    found = gradients(lab, [lab.row(fact) for fact in facts], weights)
    said = [
        Row(tuple(lab.encode(rng.choice([fact.text, *fact.paraphrases]))[0]),
            lab.target(fact.target_new), 0)
        for fact in facts
    ]  # fmt: skip
    near = [rng.choice(fact.neighborhood).prompt if fact.neighborhood else fact.subject for fact in facts]
    before = next_tokens(lab, near)
    with torch.enable_grad(), edited(editor, found, weights):
        edit = loss(lab, said, "target")
        rows = [lab.encode(prompt)[0] for prompt in near]
        normed = lab.hidden(**lab.batch(rows))
        after = lab.arch.logits(normed[range(len(rows)), [len(row) - 1 for row in rows]]).double().log_softmax(-1)
        drift = (before.exp() * (before - after)).sum(-1).mean()
    return EDIT_WEIGHT * edit + LOCALITY_WEIGHT * drift.float()
