"""What cannot be done is refused with a sentence that says what was seen and what to do."""

import pytest
import torch

import kedit_lab as kl
from kedit_lab.edit import run
from kedit_lab.model.lab import make_lab
from kedit_lab.study.collision import draw
from kedit_lab.types import Fact
from tests.pico.tiny import KINDS, TEXTS, build

GOOD = Fact("John Smith", "{}'s employer is", "Greek", relation="employer")
RECIPE = kl.Recipe("memit", layers=(1,), lr=0.1, lr_unit="hidden", decay=0.0, steps=4, lam=1.0, prefixes=0)


@pytest.fixture(params=["gpt2", "llama"])
def fresh(tokenizer, request):
    return make_lab(build(KINDS[request.param].config), tokenizer, request.param)


@pytest.fixture
def edit(fresh, tmp_path):
    """kl.edit on a small model; whatever happens, the model stays as it is."""

    def edit(facts=(GOOD,), recipe=RECIPE, **overrides):
        before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
        try:
            return kl.edit(fresh, facts, recipe, moment_texts=TEXTS, cache=tmp_path, **overrides)
        finally:
            for name, tensor in fresh.model.state_dict().items():
                torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)

    return edit


def test_good_input_is_taken(edit):
    assert edit().facts == (GOOD,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "John Smith's employer is"}, "has 0 slots, not one; put '{}' where the subject 'John Smith' goes"),
        ({"prompt": "The employer of Mary is"}, "has 0 slots, not one; put '{}' where the subject 'John Smith' goes"),
        ({"prompt": "{} says that {} is"}, "has 2 slots, not one; keep one '{}' and write the other mention"),
        ({"prompt": ""}, "prompt is ''; a fact needs a non-empty text there"),
        ({"subject": ""}, "subject is ''; a fact needs a non-empty text there"),
        ({"subject": "  "}, "subject is '  '; a fact needs a non-empty text there"),
        ({"target_new": ""}, "target_new is ''; a fact needs a non-empty text there"),
        ({"target_new": " \n"}, "target_new is ' \\n'; a fact needs a non-empty text there"),
        ({"target_true": "Greek"}, "target_new 'Greek' is what the model should say already (target_true)"),
        ({"target_true": " Greek "}, "target_new 'Greek' is what the model should say already (target_true)"),
        ({"prompt": "{}'s employer is Greek"}, "already ends in its target_new 'Greek'; end the prompt just before"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_facts(change, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below, as it stands
        Fact(**{"subject": GOOD.subject, "prompt": GOOD.prompt, "target_new": GOOD.target_new} | change)
    assert message in str(raised.value)


def test_targets_with_another_target():
    assert GOOD.with_target("Paris").target_new == "Paris"
    with pytest.raises(ValueError, match="target_new is ''"):
        GOOD.with_target("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "memitt"}, "unknown recipe 'memitt'; the recipes are memit, memit-merge"),
        ({"layers": (3,)}, "layer 3 is not one of this model's 3 layers (0 to 2)"),
        ({"layers": (-4,)}, "layer -4 is not one of this model's 3 layers (0 to 2)"),
        ({"layers": (1, 0)}, "layers is (1, 0); give each layer once, in ascending order"),
        ({"layer": (1,)}, "recipe 'memit' has no field 'layer'; its fields are name, paper"),
        ({"token": "first"}, "token is 'first'; choose one of subject_last, last"),
        ({"solver": "magic"}, "solver is 'magic'; choose one of ridge"),
        ({"steps": 0}, "steps is 0; it must be a finite number of at least 1"),
        ({"lam": -1.0}, "lam is -1.0; it must be a finite number of at least 0"),
        ({"lam": 0.0}, "lam is 0; the weight λ of the preserved keys must be positive"),
        ({"facts": ()}, "facts is empty; give at least one fact to edit"),
        (
            {"facts": (GOOD, GOOD.with_target("Paris"))},
            "conflicting facts: \"John Smith's employer is\" should be both 'Greek' and 'Paris'; keep one of them",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_edits(edit, arguments, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below, as it stands
        edit(**arguments)
    assert message in str(raised.value)


def test_conflicts_are_found_by_relation_or_by_prompt(edit):
    other = Fact("John Smith", "The employer of {} is", "Paris", relation="employer")
    with pytest.raises(ValueError, match="conflicting facts: 'The employer of John Smith is' should be both"):
        edit((GOOD, other))
    bare = [Fact("John Smith", "{} works in", target) for target in ("Paris", "London")]
    with pytest.raises(ValueError, match="conflicting facts"):
        edit(bare)


def test_what_is_no_conflict(edit):
    same = Fact("John Smith", "The employer of {} is", " Greek", relation="employer")
    other = Fact("Mary Jones", "{}'s employer is", "Paris", relation="employer")
    assert len(edit((GOOD, GOOD, same, other)).facts) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_of_the_edited_layer(edit, fresh, value):
    fresh.arch.mlp[1].module.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"1\..*weight holds NaN or infinite values; load an undamaged checkpoint"):
        edit()


@pytest.mark.parametrize("layer", [0, 2])
def test_damaged_weights_elsewhere(edit, fresh, layer):
    fresh.arch.attention[layer].module.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(hold|holds|are) NaN or infinite"):
        edit()


@pytest.mark.parametrize("override", [{"steps": 1}, {"clamp": 0.0}, {"lr": 0.0}, {"stop": 99.0}], ids=str)
def test_zero_update(edit, override):
    with pytest.raises(ValueError, match="the update is zero: the model says these targets already, or lr, clamp or"):
        edit(**override)


def test_reading(fresh):
    with pytest.raises(ValueError, match="unknown part 'keys'; the parts are key, mlp, attention, block, input"):
        kl.record(fresh, "keys", [1]).__enter__()
    with pytest.raises(ValueError, match="unknown token rule 'first'; the rules are subject_last, last"):
        kl.keys(fresh, [GOOD], 1, prefixes=None, token="first")
    with pytest.raises(ValueError, match="layer 9 is not one of this model's 3 layers"):
        kl.keys(fresh, [GOOD], 9, prefixes=None)


def test_measuring(fresh):
    with pytest.raises(ValueError, match=r"unknown kinds \['rewrites'\]; the kinds are rewrite, paraphrase"):
        kl.evaluate(fresh, [GOOD], kinds=["rewrite", "rewrites"])
    with pytest.raises(ValueError, match="facts is empty; there is nothing to evaluate"):
        kl.evaluate(fresh, [])


def test_studying():
    with pytest.raises(ValueError, match="subjects is 'one'; choose one of same, distinct"):
        draw("one", 3)


def test_check_alone(fresh):
    """The checks run before anything is computed."""
    with pytest.raises(ValueError, match="facts is empty"):
        run.check(fresh, (), RECIPE)
