"""The parts that ``Arch`` finds are those that a reader of the architecture's source would name."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, MixtralConfig

from kedit_lab.model.arch import Arch
from kedit_lab.model.hooks import record
from kedit_lab.model.lab import make_lab
from tests.pico.tiny import FULL, HEADS, INNER, KINDS, LAYERS, MODERN, VOCAB, WIDTH, build

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]


@pytest.fixture
def fresh(tokenizer):
    """fresh(name): a model of an architecture that a test may break."""
    return lambda name: build(KINDS[name].config)


def test_parts_are_the_known_modules(pico, kind):
    known, arch, model = KINDS[kind], pico.arch, pico.model
    assert arch.blocks is model.get_submodule(known.blocks)
    assert arch.norm is model.get_submodule(known.norm)
    assert arch.head is model.get_submodule(known.head)
    assert (arch.layers, arch.d_model, arch.d_k) == (LAYERS, WIDTH, known.inner)
    for found, path in ((arch.mlp, known.mlp), (arch.attention, known.attention)):
        assert [p.name for p in found] == [f"{known.blocks}.{i}.{path}.weight" for i in range(LAYERS)]
        for projection in found:
            assert projection.module is model.get_submodule(projection.name.removesuffix(".weight"))
            assert projection.module.weight is model.get_parameter(projection.name)


def test_what_is_inside_attention_reads_its_input(pico):
    """Queries, keys and values, in one projection or in three."""
    for layer in range(LAYERS):
        inner = pico.arch.attention_inner(layer)
        assert inner
        assert all(p.d_in == WIDTH for p in inner)
        assert pico.arch.attention[layer].name not in {p.name for p in inner}


def test_orientation(pico, kind):
    known = KINDS[kind]
    for projection in (*pico.arch.mlp, *pico.arch.attention):
        assert projection.transposed is known.transposed
        assert projection.d_out == WIDTH
        matrix = torch.arange(projection.d_out * projection.d_in).view(projection.d_out, projection.d_in).float()
        stored = projection.stored(matrix)
        assert stored.shape == projection.module.weight.shape
        assert torch.equal(stored, matrix.T if known.transposed else matrix)
    assert {p.d_in for p in pico.arch.mlp} == {known.inner}
    assert {p.d_in for p in pico.arch.attention} == {WIDTH}


def test_stored_change_acts_as_the_matrix(fresh, tokenizer, kind):
    """Adding ``stored(Δ)`` to the weight changes what the MLP writes by Δ k."""
    lab = make_lab(fresh(kind), tokenizer)
    projection = lab.arch.mlp[1]
    torch.manual_seed(4)
    change = torch.randn(projection.d_out, projection.d_in)
    inputs = lab.batch(PROMPTS)
    with record(lab, ["key", "mlp"], [1]) as seen:
        lab.hidden(**inputs)
        before = seen["mlp", 1]
        projection.module.weight.data += projection.stored(change)
        lab.hidden(**inputs)
        torch.testing.assert_close(seen["mlp", 1] - before, seen["key", 1] @ change.T, rtol=1e-4, atol=1e-4)


def test_logits_are_the_models_own(pico):
    inputs = pico.batch(PROMPTS)
    ours, theirs = pico.arch.logits(pico.hidden(**inputs)), pico.model(**inputs).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_soft_cap_and_scales_are_read(make):
    assert make("gemma2").arch.softcap == 30.0
    assert make("cohere").arch.head_scale == 0.25
    assert make("granite").arch.head_scale == 0.25
    assert (make("llama").arch.softcap, make("llama").arch.head_scale) == (None, 1.0)


def test_padding_changes_nothing(pico):
    """A row in a right- or left-padded batch gives the hidden states that it gives alone."""
    alone = [pico.hidden(**pico.batch([ids]))[0] for ids in PROMPTS]
    for left in (False, True):
        batched = pico.hidden(**pico.batch(PROMPTS, left=left))
        for i, ids in enumerate(PROMPTS):
            row = batched[i, -len(ids) :] if left else batched[i, : len(ids)]
            torch.testing.assert_close(row, alone[i], rtol=1e-4, atol=1e-4)


def test_layers_count_from_either_end(pico):
    assert [pico.arch.layer(i) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]


@pytest.mark.parametrize("layer", [LAYERS, -LAYERS - 1])
def test_layer_out_of_range(make, layer):
    with pytest.raises(ValueError, match=rf"layer {layer!r} is not one of this model's 3 layers \(0 to 2\)"):
        make("llama").arch.layer(layer)


def test_mixture_of_experts_is_refused():
    model = build(MixtralConfig(**MODERN, num_local_experts=2))
    with pytest.raises(ValueError, match=r"model\.layers\.0\..* holds experts; a mixture-of-experts MLP"):
        Arch.of(model)


def test_encoder_is_refused():
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    config = BertConfig(**sizes, num_attention_heads=HEADS)
    with pytest.raises(ValueError, match="BertModel has no output embedding; load a causal language model"):
        Arch.of(BertModel(config))
    with pytest.raises(ValueError, match=r"no final norm beside 'bert\.encoder\.layer' in BertEncoder.*decoder-only"):
        Arch.of(BertForMaskedLM(config))


class Int8(torch.nn.Module):
    """A stand-in for a quantised projection."""

    def __init__(self, old):
        super().__init__()
        self.register_buffer("weight", old.weight.to(torch.int8))


class Int8Linear(torch.nn.Linear):
    """bitsandbytes derives its quantised layers from nn.Linear."""

    def __init__(self, old):
        super().__init__(old.in_features, old.out_features, bias=False)
        self.weight = torch.nn.Parameter(old.weight.to(torch.int8), requires_grad=False)


class Float8Linear(Int8Linear):
    """Float8 is a floating type, and cannot be edited all the same."""

    def __init__(self, old):
        super().__init__(old)
        self.weight = torch.nn.Parameter(old.weight.to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("quantised", [Int8, Int8Linear, Float8Linear])
def test_quantised_projection_is_refused(fresh, quantised):
    model = fresh("llama")
    model.model.layers[1].mlp.down_proj = quantised(model.model.layers[1].mlp.down_proj)
    message = rf"model\.layers\.1\.mlp\.down_proj is a {quantised.__name__} with torch\.\w+8\w* weights; .*unquantised"
    with pytest.raises(ValueError, match=message):
        Arch.of(model)


@pytest.mark.parametrize("path", ["model.layers.2.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(fresh, tokenizer, path, value):
    model = fresh("llama")
    model.get_parameter(path).data[3, 4] = value
    with pytest.raises(ValueError, match=f"{path} holds NaN or infinite values; load an undamaged checkpoint"):
        make_lab(model, tokenizer)


def test_unknown_treatment_of_logits_is_refused(fresh, tokenizer):
    """An architecture that does something unknown behind its head must not be measured with wrong logits."""
    model = fresh("granite")
    model.config.logits_scaling = 1.0
    lab = make_lab(model, tokenizer)
    assert lab.arch.head_scale == 1.0
    model.register_forward_hook(lambda _m, _i, out: out.__setitem__("logits", out.logits * 3))
    with pytest.raises(
        ValueError, match="GraniteForCausalLM does something to its logits that kedit-lab does not know"
    ):
        make_lab(model, tokenizer)


def test_missing_parts_are_named(fresh):
    model = fresh("llama")
    model.model.layers = torch.nn.ModuleList(model.model.layers[:2])
    with pytest.raises(ValueError, match="LlamaForCausalLM has no list of 3 decoder blocks with attention"):
        Arch.of(model)
    model = fresh("llama")
    for block in model.model.layers:
        block.mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"model\.layers\.0 \(LlamaDecoderLayer\) has no MLP output projection"):
        Arch.of(model)


def test_lab_is_in_evaluation_mode_without_gradients(tokenizer):
    config = type(KINDS["gpt2"].config)(**FULL | {"resid_pdrop": 0.5})
    lab = make_lab(build(config).train(), tokenizer)
    assert not lab.model.training
    assert not any(parameter.requires_grad for parameter in lab.model.parameters())
