"""The tail of a forward pass computes what a full pass computes, for every architecture and from every layer."""

import pytest
import torch
from transformers import DogeConfig

from kedit_lab.model.hooks import replace
from kedit_lab.model.lab import make_lab
from kedit_lab.model.past import leads
from kedit_lab.model.tail import Tail
from kedit_lab.model.tokens import Row
from tests.pico.tiny import KINDS, LAYERS, MODERN, WIDTH, build

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32: sums of another order; what is compared is of size one

SHAPES = {  # (lookup, prompt tokens, target tokens) of every row; windows of four tokens are shorter than most rows
    "mixed": [(0, 3, 2), (3, 5, 1), (7, 8, 3), (1, 2, 1)],
    "behind a prefix": [(2, 6, 2), (9, 11, 1), (5, 6, 4)],
    "all first": [(0, 2, 2), (0, 7, 1), (0, 1, 3)],
    "all alike": [(3, 6, 2), (3, 6, 2)],
    "lookup last": [(4, 5, 1), (2, 3, 1)],
    "alone": [(6, 9, 2)],
}


def make_rows(shapes):
    torch.manual_seed(1)
    ids = lambda n: tuple(torch.randint(2, 300, (n,)).tolist())  # noqa: E731
    return [Row(ids(prompt), ids(target), lookup) for lookup, prompt, target in shapes]


def make_delta(rows):
    torch.manual_seed(2)
    return torch.randn(len(rows), WIDTH).requires_grad_()


def add_at(delta, columns):
    """A function that adds one row of ``delta`` to each row's hidden states, at that row's column."""

    def write(hidden):
        spot = torch.nn.functional.one_hot(torch.tensor(columns), hidden.shape[1]).to(hidden)
        return hidden + spot[..., None] * delta[:, None]

    return write


def full_pass(lab, rows, start, delta):
    """Per row, the final-norm hidden states from the lookup token on, of a plain right-padded pass."""
    with replace(lab, "block", start - 1, add_at(delta, [row.lookup for row in rows])):
        hidden = lab.hidden(**lab.batch([row.ids for row in rows]))
    return [hidden[i, row.lookup : len(row.ids)] for i, row in enumerate(rows)]


def tail_pass(tail, rows, delta):
    hidden = tail(add_at(delta, [0] * len(rows)))
    assert hidden.isfinite().all()
    return [hidden[i, : len(row.ids) - row.lookup] for i, row in enumerate(rows)]


def assert_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def gradient(states, delta):
    torch.manual_seed(3)
    loss = sum((state * torch.randn_like(state)).sum() for state in states)
    return torch.autograd.grad(loss, delta)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_tail_equals_the_full_pass(pico, shape):
    rows = make_rows(SHAPES[shape])
    for start in range(1, LAYERS + 1):
        delta = make_delta(rows)
        tail = Tail.of(pico, rows, start)
        found, wanted = tail_pass(tail, rows, delta), full_pass(pico, rows, start, delta)
        assert_same(found, wanted)
        torch.testing.assert_close(gradient(found, delta), gradient(wanted, delta), rtol=1e-3, atol=1e-3)


@pytest.fixture
def roomy(monkeypatch):
    """What a GPU does: pasts have room for what every pass adds."""
    monkeypatch.setattr("kedit_lab.model.tail.room_behind", lambda _lab, tokens: tokens)


@pytest.mark.parametrize("shape", ["mixed", "behind a prefix", "all first"])
def test_room_behind_the_past_changes_nothing(pico, roomy, shape):
    """Also in a second pass, which writes over what the first left there, of parts, and of some rows alone."""
    rows = make_rows(SHAPES[shape])
    (whole,), parts = Tail.each(pico, rows, [range(len(rows))], 1), Tail.each(pico, rows, [[0], [1, 2]], 1)
    before = max(row.lookup for row in rows)
    assert all(keys.shape[2] == before + whole.width for keys, _ in whole.past)
    for tail, which in ((whole, range(len(rows))),) * 2 + (
        (whole.select(torch.tensor([0, 2])), (0, 2)),
        (parts[1], (1, 2)),
    ):
        some = [rows[i] for i in which]
        delta = make_delta(some)
        found, wanted = tail_pass(tail, some, delta), full_pass(pico, some, 1, delta)
        assert_same(found, wanted)
        torch.testing.assert_close(gradient(found, delta), gradient(wanted, delta), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama"], indirect=True)
def test_a_way_back_behind_the_next_pass_is_refused_or_right(pico, kind, roomy):
    """Llama repeats heads, so that what is read on the way back is a copy."""
    rows = make_rows(SHAPES["behind a prefix"])
    tail, delta = Tail.of(pico, rows, 1), make_delta(rows)
    first, _ = tail_pass(tail, rows, delta), tail_pass(tail, rows, 2 * delta)
    if kind == "gpt2":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(first, delta)
    else:
        wanted = gradient(full_pass(pico, rows, 1, delta), delta)
        torch.testing.assert_close(gradient(first, delta), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_from_the_first_block_on(pico, shape):
    """As answers are scored: the rows as they are, and only some of their positions read."""
    rows = make_rows(SHAPES[shape])
    tail, whole = Tail.of(pico, rows, 0), pico.hidden(**pico.batch([row.ids for row in rows]))
    spots = [(i, at - row.lookup) for i, row in enumerate(rows) for at in row.answers]
    row, column = torch.tensor(spots).T
    found = tail.reading(row, column)(lambda hidden: hidden)[row, column]
    torch.testing.assert_close(found, whole[row, column + torch.tensor([r.lookup for r in rows])[row]], **CLOSE)


def sharing_rows():
    """Rows about two leads of nine ids, one that ends with its lead, one without a lead and one without a past."""
    torch.manual_seed(4)
    ids = lambda n: tuple(torch.randint(2, 300, (n,)).tolist())  # noqa: E731
    a, b = ids(9), ids(9)
    prompts = [(a + ids(3), 11), (a + ids(6), 12), (b + ids(1), 9), (b + ids(7), 14), (ids(5), 3), (ids(3), 0)]
    return [Row(prompt, ids(1 + i % 3), lookup) for i, (prompt, lookup) in enumerate(prompts)]


def test_shared_leads_change_nothing(pico):
    rows = sharing_rows()
    for start in (1, LAYERS):
        delta = make_delta(rows)
        found, wanted = tail_pass(Tail.of(pico, rows, start), rows, delta), full_pass(pico, rows, start, delta)
        assert_same(found, wanted)
        torch.testing.assert_close(gradient(found, delta), gradient(wanted, delta), rtol=1e-3, atol=1e-3)


def test_shared_leads_are_run_once(make):
    lab, rows, seen = make("llama"), sharing_rows()[:4], []
    with replace(lab, "input", 0, lambda hidden: seen.append(hidden.shape[:2])):
        Tail.of(lab, rows, 1)
    assert [tuple(shape) for shape in seen] == [(2, 9), (4, 5), (4, 4)]  # leads, what else is before, what is behind


def test_leads_are_run_once_for_all_calls(make):
    lab, rows, seen, known = make("llama"), sharing_rows()[:4], [], {}
    with replace(lab, "input", 0, lambda hidden: seen.append(hidden.shape[:2])):
        first, second = (Tail.each(lab, rows, [range(4)], 1, known)[0] for _ in range(2))
    assert [tuple(shape) for shape in seen] == [(2, 9), (4, 5), (4, 4), (4, 5), (4, 4)]
    assert torch.equal(first.hidden, second.hidden)


def test_equal_pasts_are_run_once(make):
    lab, rows, seen = make("llama"), sharing_rows()[:4], []
    twice = [*rows, *(Row(row.prompt, row.target[::-1], row.lookup) for row in rows)]
    with replace(lab, "input", 0, lambda hidden: seen.append(hidden.shape[:2])):
        tail = Tail.of(lab, twice, 1)
    assert [tuple(shape) for shape in seen] == [(2, 9), (4, 5), (8, 4)]  # as for one of each, but for what is behind
    delta = make_delta(twice)
    assert_same(tail_pass(tail, twice, delta), full_pass(lab, twice, 1, delta))


def test_leads_are_what_rows_of_one_start_share():
    assert leads([(1,) * 9 + (2, 3), (1,) * 9 + (2, 4), (5, 6), ()]) == [(1,) * 9 + (2,)] * 2 + [()] * 2
    assert leads([(1, 2), (1, 3)]) == [(), ()]  # too little to be worth a pass


def test_only_what_is_read_is_computed(pico):
    """MLPs see no padding. Positions that are said to be read come out as before, and the last MLP sees no other."""
    rows = make_rows(SHAPES["behind a prefix"])
    row, column = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3])
    delta = make_delta(rows)
    whole = Tail.of(pico, rows, 1)
    some = whole.reading(row, column)
    seen = []
    hooks = [
        part.module.register_forward_hook(lambda _m, args, _o: seen.append(args[0].numel() // pico.arch.d_k))
        for part in pico.arch.mlp[1:]
    ]
    try:
        states = [tail(add_at(delta, [0] * len(rows)))[row, column] for tail in (whole, some)]
    finally:
        [hook.remove() for hook in hooks]
    torch.testing.assert_close(states[1], states[0], **CLOSE)
    torch.testing.assert_close(gradient(states[1:], delta), gradient(states[:1], delta), rtol=1e-3, atol=1e-3)
    alone = pico.arch.mlp_module(LAYERS - 1) is not None
    every = whole.hidden.shape[0] * whole.hidden.shape[1]
    real = sum(len(r.ids) - r.lookup for r in rows)
    assert real < every
    upper = LAYERS - 1
    assert seen == (upper * [real] + [*(upper - 1) * [real], 4] if alone else 2 * upper * [every])


def test_write_is_given_the_stream_that_enters_the_block(pico):
    rows = make_rows(SHAPES["mixed"])
    seen = []
    with replace(pico, "input", 2, lambda hidden: seen.append(hidden)):
        pico.hidden(**pico.batch([row.ids for row in rows]))
    tail = Tail.of(pico, rows, 2)
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            tail.hidden[i, : len(row.ids) - row.lookup], seen[0][i, row.lookup : len(row.ids)], **CLOSE
        )


def test_delta_changes_the_result(pico):
    """The comparison above would mean little if what is written had no effect."""
    rows = make_rows(SHAPES["mixed"])
    tail = Tail.of(pico, rows, 1)
    delta = make_delta(rows)
    for moved, still in zip(tail_pass(tail, rows, delta), tail_pass(tail, rows, 0 * delta), strict=True):
        assert (moved - still).abs().amax(-1).min() > 1e-3  # every later token attends to the lookup token


def test_row_alone_equals_row_in_company(pico):
    rows = make_rows(SHAPES["mixed"])
    delta = make_delta(rows)
    together = tail_pass(Tail.of(pico, rows, 1), rows, delta)
    for i, row in enumerate(rows):
        assert_same(tail_pass(Tail.of(pico, [row], 1), [row], delta[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("shape", ["mixed", "all first"])
def test_select_equals_a_tail_of_these_rows(pico, shape):
    rows = make_rows(SHAPES[shape])
    kept = torch.tensor([2, 0])
    some = [rows[i] for i in kept]
    delta = make_delta(some)
    for start in (1, LAYERS):
        found = tail_pass(Tail.of(pico, rows, start).select(kept), some, delta)
        assert_same(found, tail_pass(Tail.of(pico, some, start), some, delta))


def test_what_other_columns_ask_the_first_attention_is_kept(pico, monkeypatch):
    """Later calls, of a part of the rows too, show the projections into it column 0 alone, and find the same."""
    rows, start = make_rows(SHAPES["mixed"]), 1
    tail, other = Tail.of(pico, rows, start), (2 * make_delta(rows).detach()).requires_grad_()
    tail_pass(tail, rows, make_delta(rows))
    inner = pico.arch.attention_inner(start)
    assert set(tail.kept) == {p.name for p in inner}
    assert all(not kept.requires_grad for kept in tail.kept.values())
    shown = []
    for p in inner:
        forward = p.module.forward
        monkeypatch.setattr(p.module, "forward", lambda x, of=forward: (shown.append(tuple(x.shape[:2])), of(x))[1])
    found = tail_pass(tail, rows, other)
    assert shown == [(len(rows), 1)] * len(inner)
    part, chosen = tail.select(torch.tensor([2, 0])), [2, 0]
    assert_same(tail_pass(part, [rows[i] for i in chosen], other[chosen]), [found[i] for i in chosen])
    assert shown == [(len(rows), 1)] * len(inner) + [(2, 1)] * len(inner)
    monkeypatch.undo()
    wanted = full_pass(pico, rows, start, other)
    assert_same(found, wanted)
    torch.testing.assert_close(gradient(found, other), gradient(wanted, other), rtol=1e-3, atol=1e-3)


def test_projections_of_something_else_are_run_whole(tokenizer):
    """Doge's attention has one that reads the values of all positions, the lookup token's among them."""
    sizes = {k: v for k, v in MODERN.items() if k != "max_position_embeddings"}
    lab = make_lab(build(DogeConfig(**sizes, keep_window_size=64)), tokenizer)
    rows, start = make_rows(SHAPES["mixed"]), 1
    delta, tail = make_delta(rows), Tail.of(lab, rows, start)
    found = tail_pass(tail, rows, delta)
    assert 0 < len(tail.kept) < len(lab.arch.attention_inner(start))
    for again in (found, tail_pass(tail, rows, delta)):
        wanted = full_pass(lab, rows, start, delta)
        assert_same(again, wanted)
        torch.testing.assert_close(gradient(again, delta), gradient(wanted, delta), rtol=1e-3, atol=1e-3)


def test_no_past_of_blocks_that_are_not_run_again(make):
    tail = Tail.of(make("llama"), make_rows(SHAPES["behind a prefix"]), 2)
    assert all(pair is tail.past[2] for pair in tail.past[:2])
    some = tail.select(torch.tensor([1]))
    assert all(pair is some.past[2] for pair in some.past[:2])
    assert [len(keys) for keys, _ in some.past] == [1] * LAYERS


def test_repeated_calls_agree_bit_for_bit(pico):
    """The frozen past is read, never extended."""
    rows = make_rows(SHAPES["mixed"])
    delta = make_delta(rows)
    tail = Tail.of(pico, rows, 1)
    past = [(keys.clone(), values.clone()) for keys, values in tail.past]
    first, second = tail_pass(tail, rows, delta), tail_pass(tail, rows, delta)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for (keys, values), (keys_before, values_before) in zip(tail.past, past, strict=True):
        assert torch.equal(keys, keys_before)
        assert torch.equal(values, values_before)


def test_lower_blocks_are_not_computed(pico):
    rows = make_rows(SHAPES["mixed"])
    tail = Tail.of(pico, rows, 2)
    calls = []
    hooks = [p.module.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, p in enumerate(pico.arch.mlp)]
    try:
        tail(lambda hidden: hidden)
    finally:
        [hook.remove() for hook in hooks]
    assert calls == [2]


def test_prefix_is_not_computed(make):
    rows = make_rows(SHAPES["behind a prefix"])
    lab = make("llama")
    tail = Tail.of(lab, rows, 1)
    widths = []
    with replace(lab, "input", 2, lambda hidden: widths.append(hidden.shape[1])):
        tail(lambda hidden: hidden)
    assert widths == [max(len(row.ids) - row.lookup for row in rows)]


def state_of(lab):
    """What a tail might leave behind: forward attributes of instances, hooks, gradients."""
    every = lab.model.modules()
    return [(dict(m.__dict__).get("forward"), list(m._forward_hooks), list(m._forward_pre_hooks)) for m in every]


def test_model_is_as_before(pico):
    ids = torch.arange(2, 9)[None]
    rows = make_rows(SHAPES["mixed"])
    before, state = pico.model(input_ids=ids).logits, state_of(pico)
    tail = Tail.of(pico, rows, 2)
    assert state_of(pico) == state
    tail(lambda hidden: hidden + 1)
    assert state_of(pico) == state

    def broken(hidden):
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        tail(broken)
    assert state_of(pico) == state
    assert torch.equal(pico.model(input_ids=ids).logits, before)
    assert all(parameter.grad is None for parameter in pico.model.parameters())


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_forward_that_someone_else_replaced_comes_back(make, name):
    """Accelerate puts its device hooks into ``block.forward`` of the instance; a tail must not lose them."""
    lab = make(name)
    rows = make_rows(SHAPES["mixed"])
    delta = make_delta(rows)
    wanted = tail_pass(Tail.of(lab, rows, 2), rows, delta)
    block, original, calls = lab.arch.blocks[0], lab.arch.blocks[0].forward, []
    mine = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)  # noqa: E731
    block.forward = mine
    try:
        tail = Tail.of(lab, rows, 2)
        assert calls
        assert_same(tail_pass(tail, rows, delta), wanted)
        assert block.__dict__["forward"] is mine
    finally:
        del block.forward


def test_layers_return_tuples_and_tensors(make):
    """Both kinds of layers are among those tested, and the tail knows which it has."""
    rows = make_rows(SHAPES["alone"])
    found = {name: Tail.of(make(name), rows, 1).tuples for name in KINDS}
    assert found == {name: kind.tuples for name, kind in KINDS.items()}
    assert set(found.values()) == {True, False}


@pytest.mark.parametrize("name", ["llama", "gptj", "bloom"])
def test_bfloat16(tokenizer, name):
    """In half precision the tail stays near the full pass, whose sums are rounded to three digits at every step."""
    lab = make_lab(build(KINDS[name].config).to(torch.bfloat16), tokenizer)
    rows = make_rows(SHAPES["mixed"])
    delta = make_delta(rows).to(torch.bfloat16)
    found, wanted = tail_pass(Tail.of(lab, rows, 1), rows, delta), full_pass(lab, rows, 1, delta)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)
