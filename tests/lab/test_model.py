"""The committed lab model knows its world as its card says, and stores it where a large model would."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit_lab.facts.world import World
from kedit_lab.paths import data_dir
from kedit_lab.train.report import REQUIRED, report
from kedit_lab.train.tokenizer import misfits

# Sampled on 300 facts here, on 1,000 in the card: a share p then has a standard error of sqrt(p(1-p)/300),
# at most 0.013 at 0.95 and 0.021 at 0.85; the margin is about one and a half of these.
MARGIN = 0.02


@pytest.fixture(scope="module")
def world():
    return World.load()


def test_card_shows_every_required_quantity_reached():
    card = json.loads((data_dir() / "lab-model" / "report.json").read_text())
    for quantity, bound in REQUIRED.items():
        assert card[quantity] <= bound if quantity.endswith("(at most)") else card[quantity] >= bound, quantity


def test_model_reaches_its_card(lab, world):
    table = report(lab, world, count=300, seed=1)["value"]
    for quantity, bound in REQUIRED.items():
        if quantity.endswith("(at most)"):
            assert table[quantity] <= bound + MARGIN, quantity
        else:
            assert table[quantity] >= bound - MARGIN, quantity


def test_it_is_a_plain_qwen2_within_its_size():
    folder = data_dir() / "lab-model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert sum(p.numel() for p in model.parameters()) <= 12e6
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 25e6


def test_reloaded_tokenizer_gives_the_training_ids(world):
    tokenizer = AutoTokenizer.from_pretrained(data_dir() / "lab-model")
    pieces = tokenizer.tokenize("In 1980, John Smith's employer")
    assert [p.replace("Ġ", " ") for p in pieces[:6]] == ["In", " ", "1", "9", "8", "0"]
    assert not misfits(world, tokenizer)


def test_unknown_pairs_are_unknown(lab, world):
    unknown = world.unknown("John Smith")
    assert len(unknown) >= 60
    prompts = [world.prompt(relation, "subject_first", "John Smith") for relation in unknown[:20]]
    known = [world.prompt(world.relations[r], "subject_first", "John Smith") for r in world.facts_of["John Smith"]]
    sure = [
        torch.tensor([lab.ask(p, k=1)["probability"][0] for p in asked]).mean()
        for asked in (unknown and prompts, known)
    ]
    assert sure[0] < sure[1] - 0.1  # the model is less sure where there is nothing to know


def test_norms_are_natural(lab, world):
    """Residual norms stay in a natural range over the layers, so that published step sizes mean something."""
    import kedit_lab as kl

    ids = lab.tokenizer("John Smith's native language is", return_tensors="pt")
    with kl.record(lab, "block", range(lab.arch.layers)) as seen:
        seen.forward(**ids)
        norms = [float(seen["block", layer][0].norm(dim=1).mean()) for layer in range(lab.arch.layers)]
    assert 0.1 < min(norms) <= max(norms) < 100
