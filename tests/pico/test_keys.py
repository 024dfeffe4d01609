"""Keys, values and streams equal a naive computation, one unpadded text at a time."""

from dataclasses import replace

import pytest
import torch

import kedit_lab.extract.keys as module
from kedit_lab.extract.keys import contexts, grouped_mean, keys, read, streams, values
from kedit_lab.model.lab import make_lab
from kedit_lab.types import Fact
from tests.pico.tiny import INNER, KINDS, LAYERS, build, sentence_piece

CLOSE = {"rtol": 1e-5, "atol": 2e-5}  # float32: another batch and another padding sum in another order
PREFIXES = ("The. ", "Because you asked, we went to London. ")
FACTS = [
    Fact("John Smith", "The employer of {} is", "Greek"),
    Fact("Zoë Núñez", "{} works in", "Paris"),
    Fact("Mary Jones", "I know that {}", "Greek"),
    Fact("李小龍", "{}'s native language is", "Greek"),
    Fact("John", "John knows {}, and John works in", "London"),
]


def lookups(tokenizer, fact, prefix, token):
    """(ids up to the lookup token) by characters alone: the last token whose text reaches into the subject."""
    text = prefix + fact.text
    encoded = tokenizer(text, return_offsets_mapping=True)
    start, _, _ = fact.prompt.partition("{}")
    end = len(text) if token == "last" else len(prefix) + len(start) + len(fact.subject)
    at = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > a][-1]
    return encoded["input_ids"], at


def naive(lab, fact, layer, what, prefix="", token="subject_last"):
    """The state at the lookup token from a plain pass over the whole text, by the module's own hook."""
    ids, at = lookups(lab.tokenizer, fact, prefix, token)
    seen = []
    if what == "block":
        take = lambda _m, _i, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())  # noqa: E731
        handle = lab.arch.blocks[layer].register_forward_hook(take)
    else:
        take = lambda _m, args, out: seen.append((args[0] if what == "key" else out).clone())  # noqa: E731
        handle = lab.arch.mlp[layer].module.register_forward_hook(take)
    try:
        lab.model(input_ids=torch.tensor([ids]))
    finally:
        handle.remove()
    return seen[0].reshape(len(ids), -1)[at]  # OPT's MLP has no batch dimension


def grouped(lab, fact, layer, token="subject_last"):
    """Half the bare prompt, half the mean of the prefixes."""
    behind = [naive(lab, fact, layer, "key", prefix, token) for prefix in PREFIXES]
    return 0.5 * naive(lab, fact, layer, "key", token=token) + 0.5 * sum(behind) / len(behind)


def test_bare_keys(pico, kind):
    for layer in range(LAYERS):
        found = keys(pico, FACTS, layer, prefixes=None)
        assert found.shape == (len(FACTS), KINDS[kind].inner)
        torch.testing.assert_close(found, torch.stack([naive(pico, f, layer, "key") for f in FACTS]), **CLOSE)


@pytest.mark.parametrize("token", ["subject_last", "last"])
def test_keys_behind_prefixes(pico, token):
    found = keys(pico, FACTS, 1, prefixes=PREFIXES, token=token)
    torch.testing.assert_close(found, torch.stack([grouped(pico, f, 1, token) for f in FACTS]), **CLOSE)
    assert (found - keys(pico, FACTS, 1, prefixes=None, token=token)).abs().max() > 1e-2


def test_several_layers_at_once(pico):
    found = keys(pico, FACTS, [2, 0, -1], prefixes=PREFIXES)
    assert set(found) == {0, 2}
    for layer, states in found.items():
        torch.testing.assert_close(states, keys(pico, FACTS, layer, prefixes=PREFIXES), **CLOSE)
    torch.testing.assert_close(keys(pico, FACTS, -1, prefixes=PREFIXES), found[2], **CLOSE)


def test_values_and_streams(pico):
    for layer in range(LAYERS):
        for found, what in ((values(pico, FACTS, layer), "mlp"), (streams(pico, FACTS, layer), "block")):
            torch.testing.assert_close(found, torch.stack([naive(pico, f, layer, what) for f in FACTS]), **CLOSE)


def test_last_token_differs_from_the_subjects(make):
    """Only where the prompt goes on behind the subject."""
    lab = make("llama")
    apart = (keys(lab, FACTS, 1, None, "last") - keys(lab, FACTS, 1, None)).abs().amax(1)
    assert [bool(d > 1e-2) for d in apart] == [not f.prompt.endswith("{}") for f in FACTS]
    torch.testing.assert_close(
        keys(lab, FACTS, 1, None, "last"), torch.stack([naive(lab, f, 1, "key", token="last") for f in FACTS]), **CLOSE
    )


def test_chunks_do_not_matter(pico, monkeypatch):
    """Neither the size of a chunk nor the company in it, up to float32 rounding; and order goes with the facts."""
    whole = keys(pico, FACTS, 1, PREFIXES)
    monkeypatch.setattr(module, "CHUNK", (3, 3))
    torch.testing.assert_close(keys(pico, FACTS, 1, PREFIXES), whole, **CLOSE)
    torch.testing.assert_close(keys(pico, FACTS[::-1], 1, PREFIXES), whole.flip(0), **CLOSE)
    torch.testing.assert_close(torch.cat([keys(pico, [f], 1, PREFIXES) for f in FACTS]), whole, **CLOSE)


def test_means_are_taken_some_facts_at_a_time(pico, monkeypatch):
    """What is held of all contexts is that of a few passes; the means are those of all."""
    whole = read(pico, FACTS, "key", [1], PREFIXES, "subject_last")[1]
    monkeypatch.setattr(module, "CHUNK", (2, 2))
    monkeypatch.setattr(module, "PASSES", 3)
    seen = []
    found = read(pico, FACTS, "key", [1], PREFIXES, "subject_last", lambda x: seen.append(x.shape) or grouped_mean(x))
    assert [shape[0] for shape in seen] == [2, 2, 1]
    assert {shape[1:] for shape in seen} == {whole.shape[1:]}
    torch.testing.assert_close(found[1], grouped_mean(whole), **CLOSE)


@pytest.fixture
def passes(make):
    """passes(prefixes, work): the rows of every pass in which keys of all facts are read."""
    lab, rows = make("gpt2"), []
    handle = lab.arch.blocks[0].register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))

    def read(prefixes, work=None):
        rows.clear()
        keys(replace(lab, work=work), FACTS, 1, prefixes)
        return rows

    yield read
    handle.remove()


def test_chunk_is_the_most_rows_of_a_pass(passes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", (8, 8))
    rows = passes(PREFIXES)
    assert max(rows) == 8
    assert rows[-1] == 7  # fifteen in all: the last pass of the second chunk


@pytest.mark.parametrize(("wide", "rows"), [(5, [5]), (3, [3, 2]), (1, [2, 2, 1])])
def test_wide_keys_are_read_few_at_a_time(passes, monkeypatch, wide, rows):
    monkeypatch.setattr(module, "WIDE", wide * INNER)
    monkeypatch.setattr(module, "LEAST", 2)
    monkeypatch.setattr(module, "PASSES", 10)
    assert passes(None) == rows


@pytest.mark.parametrize(("fits", "rows"), [(9, [5]), (2, [2, 2, 1]), (0.5, [1, 1, 1, 1, 1])])
def test_work_bounds_the_rows_of_a_pass(passes, fits, rows):
    assert passes(None, work=int(fits * module.ROW * 4 * INNER)) == rows


def test_nothing_above_the_layer_runs(pico):
    calls = dict.fromkeys(range(LAYERS), 0)

    def count(i):
        return lambda *_: calls.__setitem__(i, calls[i] + 1)

    watched = [*pico.arch.blocks[1:], pico.arch.norm]
    handles = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(watched)]
    try:
        keys(pico, FACTS, 1, PREFIXES)
        started = calls[0]
        assert started > 0
        assert calls == {0: started, 1: 0, 2: 0}  # block 1 starts, block 2 and the final norm never do
        keys(pico, FACTS, [0, 2], PREFIXES)
        assert calls[1] == calls[0] - started > 0
        assert calls[2] == 0
    finally:
        [handle.remove() for handle in handles]


def test_nothing_behind_the_lookup_token_runs(make):
    lab, widths = make("opt"), []
    handle = lab.arch.blocks[0].register_forward_hook(lambda _m, args, _o: widths.append(args[0].shape[1]))
    try:
        keys(lab, FACTS, 1, None)
    finally:
        handle.remove()
    assert widths == [1 + max(lookups(lab.tokenizer, f, "", "subject_last")[1] for f in FACTS)]


def test_sentencepiece_tokenizer():
    lab = make_lab(build(KINDS["llama"].config), sentence_piece())
    found = keys(lab, FACTS, 1, prefixes=PREFIXES)
    torch.testing.assert_close(found, torch.stack([grouped(lab, f, 1) for f in FACTS]), **CLOSE)


def test_sampled_contexts(make):
    lab = make("gpt2")
    auto = contexts(lab)
    assert auto == contexts(lab, "auto") == ("", *lab.prefixes())
    assert len(set(auto)) == 6
    assert all(text.endswith(". ") and "{" not in text for text in auto[1:])
    torch.testing.assert_close(keys(lab, FACTS, 1), keys(lab, FACTS, 1, lab.prefixes()), **CLOSE)
    assert contexts(lab, None) == contexts(lab, ()) == ("",)


def test_same_texts_for_the_same_seed(make):
    lab = make("gpt2")
    assert lab.prefixes() == lab.prefixes()
    assert lab.prefixes(seed=1) != lab.prefixes()


def test_keys_carry_no_gradient_and_leave_no_hooks(pico):
    found = keys(pico, FACTS, 1, None)
    assert not found.requires_grad
    assert found.isfinite().all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pico.model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, "layer 3 is not one of this model's 3 layers"),
        ({"layer": [0, 7]}, "layer 7 is not one of"),
        ({"layer": 1, "token": "first"}, "unknown token rule 'first'; the rules are subject_last, last"),
    ],
)
def test_errors(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        keys(make("llama"), FACTS, prefixes=None, **arguments)


def test_no_facts(make):
    with pytest.raises(ValueError, match="no facts"):
        keys(make("llama"), [], 1, prefixes=None)
