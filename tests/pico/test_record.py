"""Recording and replacing parts of real architectures: the parts fit together, and nothing stays behind."""

import itertools

import pytest
import torch

from kedit_lab.model.hooks import PARTS, Stop, record, replace
from tests.pico.tiny import KINDS, LAYERS, WIDTH

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
LAST = LAYERS - 1


def hooks_left(lab):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lab.model.modules())


@pytest.fixture
def batch(pico):
    """Padded inputs; whatever the test does with them, no hook stays behind."""
    assert hooks_left(pico) == 0
    yield pico.batch(PROMPTS)
    assert hooks_left(pico) == 0


def test_weight_times_key_is_what_the_mlp_writes(pico, batch):
    with record(pico, ["key", "mlp"], range(LAYERS)) as seen:
        seen.forward(**batch)
    for layer, projection in enumerate(pico.arch.mlp):
        weight = projection.stored(projection.module.weight)  # its own inverse: d_out x d_k again
        bias = getattr(projection.module, "bias", None)
        written = seen["key", layer] @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(seen["mlp", layer], written, rtol=1e-5, atol=1e-5)
        assert seen["mlp", layer].std() > 0.01


def test_shapes(pico, kind, batch):
    with record(pico, PARTS, [1]) as seen:
        seen.forward(**batch)
    for name in PARTS:
        assert seen[name, 1].shape == (2, 7, KINDS[kind].inner if name == "key" else WIDTH)


def test_stream_flows_from_block_to_block(pico, batch):
    with record(pico, ["block", "input"], range(LAYERS)) as seen:
        output = seen.forward(**batch)
    for layer in range(LAST):
        assert torch.equal(seen["block", layer], seen["input", layer + 1])
    assert not torch.equal(seen["block", LAST], seen["block", LAST - 1])
    logits = pico.arch.logits(pico.arch.norm(seen["block", LAST]))
    torch.testing.assert_close(logits, output.logits, rtol=1e-5, atol=1e-5)


def test_attention_and_mlp_add_up_to_the_block(pico, kind, batch):
    """In every architecture without norms or scales behind the projections, parallel ones included."""
    if kind in ("gemma2", "gemma3", "olmo2", "granite"):
        pytest.skip("norms or scales what the projections write")
    with record(pico, ["input", "attention", "mlp", "block"], range(LAYERS)) as seen:
        seen.forward(**batch)
    for layer in range(LAYERS):
        total = sum(seen[name, layer] for name in ("input", "attention", "mlp"))
        torch.testing.assert_close(total, seen["block", layer], rtol=1e-5, atol=1e-5)


def test_identity_leaves_logits_bit_identical(pico, batch):
    plain = pico.model(**batch).logits
    for name, layer in itertools.product(PARTS, range(LAYERS)):
        with replace(pico, name, layer, lambda hidden: hidden.clone()):
            assert torch.equal(pico.model(**batch).logits, plain)


def test_replacement_takes_effect_and_ends(pico, batch):
    plain = pico.model(**batch).logits
    for name in PARTS:
        with replace(pico, name, 1, lambda hidden: hidden + torch.linspace(-1, 1, hidden.shape[-1])):
            assert (pico.model(**batch).logits - plain).abs().max() > 1e-3
    assert torch.equal(pico.model(**batch).logits, plain)


def test_replaced_block_is_what_the_next_one_reads(pico, batch):
    new = torch.randn(2, 7, WIDTH)
    with replace(pico, "block", 0, lambda _: new), record(pico, "input", [1]) as seen:
        seen.forward(**batch)
    assert torch.equal(seen["input", 1], new)


def test_replaced_key_is_what_the_projection_reads(pico, batch):
    with replace(pico, "key", 1, torch.zeros_like), record(pico, "mlp", [1]) as seen:
        seen.forward(**batch)
    bias = getattr(pico.arch.mlp[1].module, "bias", None)
    assert torch.equal(seen["mlp", 1], torch.zeros(2, 7, WIDTH) + (0 if bias is None else bias))


def test_stop_ends_the_pass_and_gives_the_same(pico, batch):
    with record(pico, ["key", "attention"], [0, 1]) as full:
        assert full.forward(**batch) is not None
    ran = []
    watch = pico.arch.blocks[2].register_forward_hook(lambda *_: ran.append(1))
    try:
        with record(pico, ["key", "attention"], [0, 1], stop=True) as seen:
            assert seen.forward(**batch) is None
            assert seen.forward(**batch) is None  # and again, for the next batch
    finally:
        watch.remove()
    assert not ran
    for at in full.wanted:
        assert torch.equal(seen[at], full[at])


def test_stop_leaves_no_hook_and_no_stopper(pico, batch):
    with record(pico, "key", [0], stop=True) as seen:
        seen.forward(**batch)
        with pytest.raises(Stop):
            pico.model(**batch)  # documented: only ``seen.forward`` catches the stop
    assert hooks_left(pico) == 0
    assert pico.model(**batch).logits.isfinite().all()


def test_exception_removes_hooks(pico, batch):
    def broken(_):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"), replace(pico, "block", 1, broken):
        pico.model(**batch)
    assert hooks_left(pico) == 0
    with pytest.raises(KeyboardInterrupt), record(pico, PARTS, range(LAYERS)):
        raise KeyboardInterrupt
    assert hooks_left(pico) == 0


def test_recorded_states_are_not_written_over(pico, batch):
    """Recording alone and recording everything give the same, and what is recorded is part of the model's graph."""
    with record(pico, PARTS, range(LAYERS)) as full, replace(pico, "input", 0, lambda h: h.clone().requires_grad_()):
        loss = full.forward(**batch).logits.sum()
    for name in PARTS:
        with record(pico, name, [1], stop=True) as alone:
            alone.forward(**batch)
        assert torch.equal(alone[name, 1], full[name, 1])
        assert torch.autograd.grad(loss, full[name, 1], retain_graph=True)[0].abs().max() > 0


def test_only_own_hooks_are_removed(make):
    lab = make("gpt2")
    handle = lab.arch.blocks[0].register_forward_hook(lambda *_: None)
    try:
        with record(lab, "block", [0]), replace(lab, "block", 0, lambda hidden: hidden):
            assert hooks_left(lab) == 3
        assert list(lab.arch.blocks[0]._forward_hooks) == [handle.id]
    finally:
        handle.remove()
