"""Two labs in one process share nothing: not weights, hooks, caches, prefixes, seeds, or the rest of the process."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

import kedit_lab as kl
from kedit_lab.model.lab import make_lab
from tests.pico.dying import bits, changed
from tests.pico.tiny import KINDS, TEXTS, build, byte_level

FACTS = (kl.Fact("John Smith", "{}'s employer is", "Greek"), kl.Fact("Mary Jones", "{} works in the city of", "Paris"))
RECIPE = kl.Recipe("memit", layers=(0, 1), lr=0.1, lr_unit="hidden", decay=0.0, steps=4, lam=1.0, prefixes=2,
                   prefix_length=4)  # fmt: skip
PAIRS = {"the same model": ("llama", "llama"), "two architectures": ("llama", "gpt2")}


def fresh(kind):
    return make_lab(build(KINDS[kind].config), byte_level(), kind)


@pytest.fixture(params=PAIRS)
def pair(request):
    """Two labs with weights and tokenizers of their own."""
    return tuple(map(fresh, PAIRS[request.param]))


def everything(lab, folder):
    """What a session asks of a lab: prefixes, C, an edit, and measurements with and without it."""
    edit = kl.edit(lab, FACTS, RECIPE, moment_texts=TEXTS, cache=folder)
    before = kl.evaluate(lab, FACTS, kinds=["rewrite"])
    with edit.applied():
        after = kl.evaluate(lab, FACTS, kinds=["rewrite"])
    moment = kl.second_moment(lab, 1, TEXTS, folder)
    numbers = [before["nll"].to_numpy(), after["nll"].to_numpy(), moment.numpy(), kl.keys(lab, FACTS, 1).numpy()]
    numbers += [delta.matrix().numpy() for delta in edit.deltas.values()]
    return lab.prefixes(3, 6), tuple(lab.ask("John Smith is", 2, tokens=3)["continuation"]), numbers


def assert_same(found, wanted):
    assert found[:2] == wanted[:2]
    for one, other in zip(found[2], wanted[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_edit_of_one_is_none_of_the_other(pair, tmp_path):
    """Weights, hooks, memos and statistics: one lab is edited, recorded and replaced in, the other is as it was."""
    one, other = pair
    wanted, before = everything(other, tmp_path / "alone"), bits(other)
    edit = kl.edit(one, FACTS, RECIPE, moment_texts=TEXTS, cache=tmp_path / "shared")
    with (
        edit.applied(),
        kl.record(one, ["key", "block"], layers=[0, 1]) as seen,
        kl.replace(one, "block", layer=1, fn=torch.zeros_like),
    ):
        assert_same(everything(other, tmp_path / "shared"), wanted)
        assert changed(other, before) == []
        assert one.fingerprint() != other.fingerprint()
        with pytest.raises(KeyError):
            seen["key", 0]
    assert_same(everything(other, tmp_path / "shared"), wanted)


def test_an_edit_of_one_is_not_applied_to_the_other(tmp_path):
    one, other = fresh("llama"), fresh("llama")
    edit = kl.edit(one, FACTS, RECIPE, moment_texts=TEXTS, cache=tmp_path)
    path, before = edit.save(tmp_path / "my.edit"), bits(other)
    with edit.applied():
        assert changed(other, before) == []
        with kl.Edit.load(path, other).applied():
            assert one.fingerprint() == other.fingerprint()
        assert changed(other, before) == []
    with kl.Edit.load(path, other).applied():
        assert one.fingerprint() != other.fingerprint()


def test_side_by_side_in_threads(pair, tmp_path):
    """Both at once, with one cache: the bits of one after the other."""
    wanted = [everything(lab, tmp_path / "alone") for lab in pair]
    both = Barrier(2)

    def work(lab):
        both.wait()
        return everything(lab, tmp_path / "both")

    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(work, pair), wanted, strict=True):
            assert_same(found, alone)


def process_state():
    """What a process has but once. Not ``random``: the shape checks of these tests draw from it."""
    flags = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), flags  # noqa: NPY002


def test_the_process_is_left_as_it_was(tmp_path):
    """Seeds are the lab's own: what else draws numbers in the process neither sees nor disturbs them."""
    lab = fresh("llama")
    before = process_state()
    first = everything(lab, tmp_path / "first")
    assert process_state() == before
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    assert_same(everything(lab, tmp_path / "second"), first)
