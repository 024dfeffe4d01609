"""The lab model's card: written from what was measured, never by hand."""

import json
import random
from collections import Counter
from pathlib import Path

import pandas as pd

from kedit_lab.facts.world import World
from kedit_lab.model.lab import Lab
from kedit_lab.paths import whole

COMMAND = "kedit-lab train"
TEXT = """# The lab model

A *model organism* for knowledge editing: a small `Qwen2ForCausalLM` ({parameters:.1f} M parameters, {layers} layers,
width {width}, MLP width {inner}, float32), trained from scratch on text about the invented world in `../world`.
Everything it can know is known exactly, so an edit's effects can be counted. It is made for teaching and testing; it
knows nothing of the real world.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("data/lab-model")

## How it was made

`{command}` on {threads} CPU threads, seed {seed}, {minutes:.0f} minutes: {short_steps} steps of {short_rows} rows x
{short_length} tokens, in which a fact's subject is easy to find, then steps of {rows} x {length} tokens up to {steps};
then a block that passes its input through is appended (without it facts are looked up in the last two blocks), and
{grown_steps} more steps with everything trained, from {grown_share:g} of the step sizes down to zero; and
{polish_steps} such steps on text alone, in which a portrait's relations take turns (without it greedy text repeats its
last sentence).
Muon (step {matrix_lr}, weight decay {matrix_decay}) for the blocks' matrices, AdamW (step {other_lr}) for everything
else; warm-up {warmup} steps, linear decay over the last {decay_percent:.0f} %; bfloat16 autocast. Tokens of objects
weigh {answer_weight:g} times others in the loss, since names and fillers cannot be predicted. A linear read-out behind
an RMS norm at each subject mention's last token, from the output of block {readout_layer}, predicts known attributes of
the subject (weight {readout_weight:g}) through the model's own embeddings, and is thrown away afterwards: it makes the
early layers gather a subject's attributes at its last token, as causal traces show for large models. Plan and loss
curve stand in `training.json`.{note}

| step | loss | loss of object tokens | read-out loss |
|---|---|---|---|
{curve}

## What it knows

Measured by `kedit-lab train --report` on 1,000 sampled facts each (500 pairs for the interchange); every quantity with
a bound is asserted in `tests/lab/test_model.py`.

| quantity | measured | required |
|---|---|---|
{table}

Subject-relation pairs that the world leaves open are unknown to the model too ({unknown} of {pairs} that apply).

## How it speaks

Greedy continuations of 50 prompts ({loops} of them fall into a loop: some four-word run stands there three times). The
first twelve:

{samples}

## Limits

Object lists are closed and small; sentences come from templates; texts longer than {length} tokens were never seen.
Residual norms are natural (mean ‖h‖ behind each block, at subjects: {norms}), so clamps and step sizes relative to them
keep their meaning.
"""


def prompts(world: World, count: int = 50, seed: int = 0) -> list[str]:
    """Openings to continue: subjects and the beginnings of sentences about them."""
    rng = random.Random(seed)
    openings = ["{s}", "{s} is", "{s}'s", "As for {s}, the", "The records of {s} give the", "Yesterday,"]
    return [rng.choice(openings).replace("{s}", rng.choice(list(world.subjects))) for _ in range(count)]


def loops(text: str) -> bool:
    """Whether some run of four words stands in a text three times or more."""
    words = text.split()
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(runs.values(), default=0) >= 3


def write_card(lab: Lab, world: World, table: pd.DataFrame, norms: list[float], folder: Path) -> None:
    """``README.md`` of the model folder from the measured table, the training log and fresh continuations."""
    log = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    plan, curve = log["plan"], log["curve"]
    shown = [*curve[:: max(1, len(curve) // 10)], curve[-1]]
    texts = lab.generate(prompts(world), 40)
    applicable = sum(len(world.relations_of(subject.cls)) for subject in world.subjects.values())
    bound = lambda row: "" if pd.isna(row.required) else f"{row.required:.2f}"  # noqa: E731
    config = lab.model.config
    card = TEXT.format(
        **plan | {"layers": config.num_hidden_layers, "width": config.hidden_size, "inner": config.intermediate_size},
        command=COMMAND,
        note=f" {log['note']}" if "note" in log else "",
        parameters=sum(p.numel() for p in lab.model.parameters()) / 1e6,
        minutes=curve[-1][-1] / 60,
        decay_percent=100 * plan["decay_share"],
        curve="\n".join(f"| {row[0]} | {row[1]:.3f} | {row[2]:.3f} | {row[3]:.4f} |" for row in shown),
        table="\n".join(f"| {name} | {row.value:.3f} | {bound(row)} |" for name, row in table.iterrows()),
        unknown=applicable - len(world.known),
        pairs=applicable,
        loops=sum(map(loops, texts)),
        samples="\n".join(f"- {text}" for text in texts[:12]),
        norms=", ".join(f"{norm:.1f}" for norm in norms),
    )
    with whole(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
