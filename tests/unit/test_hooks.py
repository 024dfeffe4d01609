"""Hooks on stand-in modules: outputs of every form, arguments of every form, and errors that help."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kedit_lab.model.arch import Arch, Projection
from kedit_lab.model.hooks import PARTS, first, on, part, record, replace, with_first

WIDTH = 4


class Block(nn.Module):
    """h + W h, returned as the architecture at hand would return it."""

    def __init__(self, tuples):
        super().__init__()
        self.tuples = tuples
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, mask=None):
        hidden = hidden_states + self.attention(hidden_states) + self.mlp(hidden_states)
        return (hidden, "weights", None) if self.tuples else hidden


class Model(nn.Module):
    def __init__(self, tuples, keywords):
        super().__init__()
        self.blocks = nn.ModuleList(Block(tuples) for _ in range(3))
        self.keywords = keywords

    def forward(self, hidden):
        for block in self.blocks:
            hidden = first(block(hidden_states=hidden, mask=1) if self.keywords else block(hidden, 1))
        return hidden


def stand_in(tuples, keywords):
    """A lab as far as hooks are concerned."""
    torch.manual_seed(0)
    model = Model(tuples, keywords)
    projections = {
        name: [Projection(f"blocks.{i}.{name}.weight", getattr(b, name), False) for i, b in enumerate(model.blocks)]
        for name in ("mlp", "attention")
    }
    arch = Arch(model.blocks, **projections, norm=nn.Identity(), head=nn.Identity(), d_model=WIDTH)
    return SimpleNamespace(model=model, arch=arch)


@pytest.fixture(params=[(False, False), (False, True), (True, False), (True, True)], ids=str)
def lab(request):
    """Blocks that return tensors or tuples, called with positional or keyword arguments."""
    return stand_in(*request.param)


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_first_and_with_first():
    a, b = torch.zeros(1), torch.ones(1)
    assert first(a) is a
    assert first((a, "rest")) is a
    assert with_first(a, b) is b
    assert with_first((a, "rest", None), b) == (b, "rest", None)


def test_what_is_recorded(lab):
    x = torch.randn(1, 2, WIDTH)
    with record(lab, PARTS, [0, -1]) as seen:
        out = seen.forward(hidden=x)
    assert torch.equal(seen["input", 0], x)
    assert torch.equal(seen["block", 2], out)
    for layer in (0, 2):
        block = lab.model.blocks[layer]
        assert torch.equal(seen["key", layer], seen["input", layer])
        assert torch.equal(seen["mlp", layer], block.mlp(seen["key", layer]))
        assert torch.equal(seen["attention", layer], block.attention(seen["input", layer]))
    assert hooks_left(lab.model) == 0


@pytest.mark.parametrize("name", PARTS)
def test_what_is_replaced(lab, name):
    x, new = torch.randn(1, 2, WIDTH), torch.randn(1, 2, WIDTH)
    block = lab.model.blocks[2]
    with record(lab, "input", [2]) as seen:
        plain = seen.forward(hidden=x)
    h = seen["input", 2]
    wanted = {
        "key": h + block.attention(h) + block.mlp(new),
        "mlp": h + block.attention(h) + new,
        "attention": h + new + block.mlp(h),
        "block": new,
        "input": new + block.attention(new) + block.mlp(new),
    }
    with replace(lab, name, 2, lambda hidden: new):
        torch.testing.assert_close(lab.model(x), wanted[name])
    assert torch.equal(lab.model(x), plain)
    assert hooks_left(lab.model) == 0


def test_rest_of_a_tuple_is_kept(lab):
    block = lab.model.blocks[0]
    with on(block, False, lambda hidden: hidden * 0):
        out = block(torch.ones(1, WIDTH), mask=1)
    assert not first(out).any()
    assert not isinstance(out, tuple) or out[1:] == ("weights", None)


def test_flattened_tokens_are_unfolded():
    """OPT's MLP sees all tokens of a batch as one long row; what is recorded and replaced has three dimensions."""

    lab = stand_in(False, False)
    for block in lab.model.blocks:
        inner = block.mlp
        block.mlp = nn.Sequential(nn.Flatten(0, 1), inner, nn.Unflatten(0, (2, 3)))
    x, new = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    with record(lab, ["key", "mlp", "input"], [1]) as seen:
        seen.forward(hidden=x)
    assert torch.equal(seen["key", 1], seen["input", 1])
    torch.testing.assert_close(seen["mlp", 1], lab.arch.mlp[1].module(seen["key", 1]))
    with replace(lab, "mlp", 1, lambda hidden: new), record(lab, "block", [1]) as after:
        after.forward(hidden=x)
    h = seen["input", 1]
    torch.testing.assert_close(after["block", 1], h + lab.model.blocks[1].attention(h) + new)


def test_gradients_flow_through_a_replacement(lab):
    delta = torch.zeros(WIDTH, requires_grad=True)
    with replace(lab, "block", 0, lambda hidden: hidden + delta):
        lab.model(torch.randn(1, 2, WIDTH)).sum().backward()
    assert delta.grad.abs().min() > 0


def test_stop(lab):
    ran = []
    lab.model.blocks[2].register_forward_pre_hook(lambda *_: ran.append(2))
    with record(lab, "key", [0, 1], stop=True) as seen:
        assert seen.forward(hidden=torch.randn(1, 2, WIDTH)) is None
    assert set(seen.states) == {("key", 0), ("key", 1)}
    assert not ran


def test_second_pass_takes_the_place_of_the_first(lab):
    x = torch.randn(2, 1, 2, WIDTH)
    with record(lab, "input", [0]) as seen:
        for each in x:
            seen.forward(hidden=each)
            assert torch.equal(seen["input", 0], each)


def test_exception_inside_the_context(lab):
    def fail(hidden):
        assert hooks_left(lab.model) > 3 * len(PARTS)
        raise ZeroDivisionError

    with record(lab, PARTS, [0, 1, 2]), replace(lab, "mlp", 1, fail), pytest.raises(ZeroDivisionError):
        lab.model(torch.randn(1, 2, WIDTH))
    assert hooks_left(lab.model) == 0


def test_bad_part_leaves_no_hook(lab):
    """Hooks that were placed before the error go too."""
    with pytest.raises(ValueError, match="unknown part 'values'; the parts are key, mlp, attention, block, input"):
        record(lab, ["key", "values"], [0]).__enter__()
    assert hooks_left(lab.model) == 0


def test_errors(lab):
    with pytest.raises(ValueError, match="layer 3 is not one of this model's 3 layers"):
        part(lab.arch, "key", 3)
    with pytest.raises(ValueError, match="layer -4 is not one of"), record(lab, "key", [-4]):
        pass
    with (
        record(lab, "key", [0]) as seen,
        pytest.raises(KeyError, match=r"\('mlp', 0\) was not seen; recorded: \[\('key', 0\)\]; run the model inside"),
    ):
        seen["mlp", 0]
