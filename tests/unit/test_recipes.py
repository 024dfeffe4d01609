"""The table of methods: what a recipe accepts, how it meets a model, and what the table shows."""

import math
from types import SimpleNamespace

import pytest

from kedit_lab.edit.published import SHAPES, VALUES, published
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.recipes import TABLE, find, recipes


def arch(layers, d_model=32, d_k=48):
    """As much of an Arch as a recipe asks for."""

    def layer(index):
        if not -layers <= index < layers:
            raise ValueError(f"layer {index} is not one of this model's {layers} layers")
        return index % layers

    return SimpleNamespace(layers=layers, d_model=d_model, d_k=d_k, layer=layer)


def unchecked(cls, values):
    """A dataclass as users make it, without the type checks that run in tests before its own."""
    made = object.__new__(cls)
    vars(made).update(values)
    made.__post_init__()
    return made


def on(recipe, model, **overrides):
    """Recipe.on without the check that the model's arch is an Arch."""
    return getattr(Recipe.on, "__wrapped__", Recipe.on)(recipe, model, **overrides)


def test_find():
    assert find("memit").group == "each"
    assert find("memit-merge").group == "subject"
    assert find(TABLE["memit"]) == TABLE["memit"]
    assert find("memit", steps=3).steps == 3
    assert TABLE["memit"].steps == 25  # the table is as before


def test_merge_differs_in_the_group_alone():
    pieces = ("target", "spread", "solver", "token", "lam", "steps", "lr", "clamp", "decay", "kl", "stop", "prefixes")
    for piece in pieces:
        assert getattr(find("memit"), piece) == getattr(find("memit-merge"), piece)
    assert VALUES["memit"] == VALUES["memit-merge"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"group": "relation"}, "group is 'relation'; choose one of each, subject, key"),
        ({"target": "logits"}, "target is 'logits'; choose one of block, mlp"),
        ({"spread": "1/2"}, r"spread is '1/2'; choose one of 1/m, 1/sqrt\(m\), whole"),
        ({"solver": "magic"}, "solver is 'magic'; choose one of ridge, null-space"),
        ({"token": "first"}, "token is 'first'; choose one of subject_last, last"),
        ({"lr_unit": "metres"}, "lr_unit is 'metres'; choose one of absolute, hidden"),
        ({"steps": 0}, "steps is 0; it must be a finite number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a finite number"),
        ({"lr": -0.1}, "lr is -0.1; it must be a finite number of at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"clamp": None}, "clamp is None"),
        ({"kl": -1.0}, "kl is -1.0"),
        ({"decay": -1.0}, "decay is -1.0"),
        ({"stop": math.nan}, "stop is nan"),
        ({"stop": "never"}, "stop is 'never'"),
        ({"prefixes": -1}, "prefixes is -1"),
        ({"prefix_length": 0}, "prefix_length is 0; it must be a finite number of at least 1"),
        ({"layers": (2, 1)}, r"layers is \(2, 1\); give each layer once, in ascending order"),
        ({"layers": (1, 1)}, "give each layer once"),
        ({"layers": 2}, r"layers is 2; give a tuple of layers, such as \(2,\)"),
        ({"layers": ("2",)}, r"layers is \('2',\); give a tuple of layers"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_overrides(override, message):
    with pytest.raises(ValueError, match=message):
        unchecked(Recipe, vars(find("memit")) | override)


def test_unknown_override():
    with pytest.raises(ValueError, match=r"recipe 'memit' has no field 'stepz'; its fields are name, paper, .*steps"):
        find("memit", stepz=3)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="unknown recipe 'memitt'; the recipes are memit, memit-merge"):
        find("memitt")


def test_layers_may_be_a_list_and_count_from_the_end():
    assert unchecked(Recipe, vars(find("memit")) | {"layers": [0, 1]}).layers == (0, 1)
    assert on(find("memit", layers=(-2, -1)), arch(4)).layers == (2, 3)
    assert on(find("memit", layers=(0, 3)), arch(4)).layers == (0, 3)


@pytest.mark.parametrize(("layers", "message"), [((4,), "layer 4 is not one of"), ((-1, 3), "give each layer once")])
def test_layers_are_checked_against_the_model(layers, message):
    with pytest.raises(ValueError, match=message):
        on(find("memit", layers=layers), arch(4))


@pytest.mark.parametrize(("shape", "name"), SHAPES.items(), ids=SHAPES.values())
def test_every_published_value_makes_a_recipe(shape, name):
    for method in TABLE:
        recipe = on(find(method), arch(*shape))
        assert recipe.layers
        assert recipe.layers[-1] < shape[0]
        assert recipe.values
        assert recipe.values.startswith("fallback") == (published(method, shape) is None)
    assert published("memit", shape)


def test_published_values_of_the_fact_sheet():
    """A few digits of the fact sheet's tables 4.1."""
    gpt_j, xl = (on(find("memit"), arch(*shape)) for shape in [(28, 4096, 16384), (48, 1600, 6400)])
    assert (gpt_j.layers, gpt_j.steps, gpt_j.lr, gpt_j.clamp, gpt_j.decay, gpt_j.lam) == (
        (3, 4, 5, 6, 7, 8), 25, 0.5, 0.75, 0.5, 15000.0)  # fmt: skip
    assert (xl.layers, xl.steps, xl.lam, xl.kl) == ((13, 14, 15, 16, 17), 20, 20000.0, 0.0625)


@pytest.mark.parametrize("layers", [1, 2, 3, 12, 80])
def test_other_shapes_get_a_labelled_fallback(layers):
    recipe = on(find("memit"), arch(layers))
    assert recipe.values == "fallback: no values are published for this shape"
    assert 0 <= recipe.layers[0] <= recipe.layers[-1] < layers
    assert recipe.lr_unit == "hidden"


@pytest.mark.parametrize("shape", [(6, 192, 768), (28, 4096, 16384), (3, 32, 48)], ids=["lab", "gpt-j", "unknown"])
@pytest.mark.parametrize(
    "override", [{"steps": 2}, {"lam": 7.0, "clamp": 9.0}, {"layers": (1,)}, {"prefixes": 0}], ids=str
)
def test_an_override_wins_over_published_values_and_changes_nothing_else(shape, override):
    resolved = on(find("memit"), arch(*shape))
    changed = on(find("memit"), arch(*shape), **override)
    told = {"values": f"{resolved.values}; changed: {', '.join(override)}"}
    assert vars(changed) == vars(resolved) | override | told


def test_no_layers():
    with pytest.raises(ValueError, match=r"layers is \(\); name at least one layer, or leave the field out"):
        on(find("memit"), arch(4), layers=())


def test_chosen_layers_keep_the_recipes_own_numbers():
    recipe = find("memit", layers=(2,), lam=7.0)
    assert on(recipe, arch(7, 192, 768)) == recipe


def test_table():
    table = recipes()
    assert list(table.index) == list(TABLE)
    assert {"memit", "memit-merge", "rome", "pmet", "alphaedit", "eamet", "ft-l", "lora", "kn", "mend"} <= set(TABLE)
    assert not table["values"].str.startswith("none").any()
    assert {"group", "target", "spread", "solver", "paper", "notes", "layers", "lam"} <= set(table.columns)
    assert table["notes"].str.len().min() > 20
    assert recipes("gpt-j").loc["memit", "layers"] == (3, 4, 5, 6, 7, 8)


def test_table_of_an_unknown_shape():
    with pytest.raises(ValueError, match=r"unknown shape 'gpt-5'; values are known for lab, gpt2-xl"):
        recipes("gpt-5")
