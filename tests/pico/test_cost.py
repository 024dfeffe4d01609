"""Operations as they are counted from shapes, against torch's own counter on tiny models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kedit_lab.edit.recipes import find
from kedit_lab.extract.keys import keys
from kedit_lab.study.cost import STAGES, distinct, key_products, needed, plainly, products, staged, stages
from kedit_lab.study.plain import plain_target
from kedit_lab.types import Fact

RECIPE = find("memit", layers=(0,), lr=0.1, lr_unit="hidden", steps=3, stop=0.0, prefixes=2, prefix_length=4)
PREFIXES = ("Therefore I think so. ", "You know. ")
FACTS = (
    Fact("John Smith", "{}'s employer is", "Greek"),
    Fact("Mary Jones", "The native language of {} is", "London"),
    Fact("Europe", "{} works", "in Greek"),
)


@pytest.fixture(params=["gpt2", "llama", "gptj"])
def pico(make, request):
    return make(request.param)


def test_plain_form_is_counted_to_the_last_product(pico):
    with FlopCounterMode(display=False) as counter:
        for fact in FACTS:
            plain_target(pico, fact, RECIPE, PREFIXES)
    assert plainly(pico, FACTS, RECIPE, PREFIXES, [RECIPE.steps] * 3) == products(counter)


def test_needed_is_less_than_is_done_and_far_less_than_plain(pico):
    """Padding and what nobody reads cost something: every stage does at least what it needs."""
    table, told = stages(pico, FACTS, RECIPE)
    assert list(table.index) == [*STAGES, "keys", "solve", "all"]
    blocks = table.loc[["lower blocks", "upper blocks", "head"]]
    assert (blocks["needed"] <= blocks["done"]).all()
    assert (blocks["needed"] > 0.3 * blocks["done"]).all()
    assert 0 < told["floor"] <= told["stands"] < 1
    assert table["share"].iloc[:-1].sum() == pytest.approx(1)
    assert told["stands"] * told["plain"] == pytest.approx(table.loc["all", "done"])


def test_keys_do_what_they_need_and_little_more(pico):
    for layer in (0, 1):
        with FlopCounterMode(display=False) as counter:
            keys(pico, FACTS, layer, PREFIXES)
        least = key_products(pico, FACTS, layer, PREFIXES)
        assert 0.5 * products(counter) < least <= products(counter)


def test_a_pass_more_needs_the_upper_blocks_and_the_head_again(pico):
    """Forward and back: twice a pass, by the tokens from the lookup token on; nothing below is run again."""
    groups = [[i] for i in range(len(FACTS))]
    one, two, three = (needed(pico, FACTS, groups, RECIPE, PREFIXES, [n] * 3) for n in (1, 2, 3))
    assert one["lower blocks"] == two["lower blocks"]
    assert one["optimiser"] == 0
    for stage in ("upper blocks", "head", "optimiser"):
        assert three[stage] - two[stage] == two[stage] - one[stage] > 0
    assert three["head"] == 5 * one["head"]


def test_stages_add_up_and_leave_no_hook(pico):
    parts = [pico.model.get_input_embeddings(), pico.arch.head, *pico.arch.blocks]
    hooks = lambda: [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts]  # noqa: E731
    before, ticks = hooks(), iter(range(10**6))
    with staged(pico, 1, lambda: float(next(ticks))) as spent:
        plain_target(pico, FACTS[0], RECIPE, PREFIXES)
    assert sum(spent.values()) == next(ticks) - 1  # a clock that counts how often it is asked
    assert min(spent[stage] for stage in STAGES) > 0
    assert hooks() == before
    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()
    assert next(ticks) == sum(spent.values()) + 2  # the optimiser's hooks are gone too: nobody asked


@given(st.lists(st.lists(st.integers(0, 2), max_size=5).map(tuple), max_size=8))
def test_distinct_positions_are_distinct_starts(rows):
    assert distinct(rows) == len({row[: i + 1] for row in rows for i in range(len(row))})
