"""Models from a folder, already loaded ones, and ones that accelerate has spread: the same lab, or a clear refusal."""

import json
import socket

import huggingface_hub.constants
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import BertConfig, BertLMHeadModel

import kedit_lab as kl
from tests.pico.tiny import HEADS, INNER, KINDS, LAYERS, TEXTS, VOCAB, WIDTH, build

FACT = kl.Fact("John Smith", "{}'s employer is", "Greek")
RECIPE = kl.Recipe("memit", layers=(0, 1), lr=0.1, lr_unit="hidden", decay=0.0, steps=4, lam=1.0, prefixes=0)


@pytest.fixture
def folder(tokenizer, tmp_path):
    build(KINDS["llama"].config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_and_a_loaded_model_are_the_same_lab(folder, tokenizer):
    from_disk = kl.load(folder, local_only=True)
    wrapped = kl.wrap(build(KINDS["llama"].config), tokenizer, "mine")
    assert from_disk.fingerprint() == wrapped.fingerprint()
    assert wrapped.name == "mine"


def test_dtype_and_device_map(folder):
    lab = kl.load(folder, torch.bfloat16, device_map={"": "cpu"})
    assert lab.anchor.dtype == torch.bfloat16
    assert lab.anchor.device.type == "cpu"


def test_an_unknown_folder_is_not_looked_for_on_the_network(tmp_path):
    with pytest.raises(OSError, match="nothing-here"):
        kl.load(tmp_path / "nothing-here", local_only=True)


def test_code_beside_a_model_is_not_run(folder):
    """Weights may come from anybody: a configuration that names code of its own is refused, and pickles are."""
    ran = folder / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()")
    config = json.loads((folder / "config.json").read_text())
    theirs = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": theirs}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        kl.load(folder)
    assert not ran.exists()


def test_pickled_weights_are_refused(folder):
    torch.save(build(KINDS["llama"].config).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        kl.load(folder)


def test_a_folder_is_edited_without_a_network(folder, tmp_path, monkeypatch):
    """Nobody is asked, not even where asking is allowed."""
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(socket.socket, "connect", lambda _, where: asked.append(where))
    lab = kl.load(folder)
    with kl.edit(lab, [FACT], RECIPE, moment_texts=TEXTS, cache=tmp_path).applied():
        kl.evaluate(lab, [FACT], kinds=["rewrite"])
    assert asked == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon"])
def test_a_dispatched_model_is_edited_like_any_other(name, tokenizer, tmp_path):
    """accelerate wraps every module's forward; keys, targets and what is written stay the same, and so do its hooks."""
    plain = kl.wrap(build(KINDS[name].config), tokenizer)
    model = build(KINDS[name].config)
    parts = [part for part, _ in model.named_children()]
    lab = kl.wrap(dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True), tokenizer)
    hooked = [module for module in lab.model.modules() if hasattr(module, "_hf_hook")]
    before = [module.forward for module in hooked]
    assert len(hooked) > LAYERS
    made = [kl.edit(here, [FACT], RECIPE, moment_texts=TEXTS, cache=tmp_path) for here in (plain, lab)]
    assert [module.forward for module in hooked] == before
    for layer in RECIPE.layers:
        torch.testing.assert_close(made[1].delta(layer), made[0].delta(layer), rtol=1e-6, atol=1e-9)
    with made[1].applied():
        told = kl.evaluate(lab, [FACT], kinds=["rewrite"])
    with made[0].applied():
        assert told["nll"][0] == pytest.approx(kl.evaluate(plain, [FACT], kinds=["rewrite"])["nll"][0], rel=1e-5)


@pytest.mark.parametrize("upper", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("method", ["memit", "eamet", "pmet", "alphaedit"])
def test_a_model_with_blocks_on_two_devices(method, upper, tokenizer, tmp_path):
    """The upper blocks lie on a GPU where there is one; one layer of each half is written."""
    plain, model, half = (*(build(KINDS["llama"].config) for _ in range(2)), LAYERS // 2)
    places = {f"model.layers.{i}": "cpu" if i < half else upper for i in range(LAYERS)}
    places |= {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": upper, "lm_head": "cpu"}
    labs = [kl.wrap(dispatch_model(model, places, "cpu", force_hooks=True), tokenizer), kl.wrap(plain, tokenizer)]
    told = []
    for lab in labs:
        facts = [FACT, kl.Fact("Mary Jones", "{} is in", "Paris", "London", paraphrases=("Mary Jones lives in",))]
        settings = {"layers": (half - 1, half), "steps": 4, "prefixes": 1, "prefix_length": 3, "threshold": 1e9}
        made = kl.edit(lab, facts, method, moment_texts=TEXTS, cache=tmp_path, lam=1.0, **settings)
        with made.applied():
            told.append((made, kl.evaluate(lab, facts, kinds=["rewrite", "paraphrase"])))
    (made, found), (wanted, plainly) = told
    for layer in (half - 1, half):
        torch.testing.assert_close(made.delta(layer).cpu(), wanted.delta(layer), rtol=1e-3, atol=1e-5)
    assert found["nll"].to_numpy() == pytest.approx(plainly["nll"].to_numpy(), rel=1e-3)


def test_offloaded_weights_are_refused(tokenizer):
    model = cpu_offload(build(KINDS["llama"].config), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"weights are offloaded, model\.\S+ the first; .*smaller dtype.*device_map"):
        kl.wrap(model, tokenizer)


def test_an_encoder_with_a_language_head_is_refused(tokenizer):
    """A tree may have every part and still read in both directions."""
    model = build(KINDS["llama"].config)
    model.config.is_causal = False
    for block in model.model.layers:
        block.self_attn.is_causal = False
    model.model.config._attn_implementation = "eager"
    see_all = lambda _module, args, kwargs: (args, kwargs | {"attention_mask": None})  # noqa: E731
    for block in model.model.layers:
        block.self_attn.register_forward_pre_hook(see_all, with_kwargs=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM reads in both directions: its first token's logits depend"):
        kl.wrap(model, tokenizer)
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    config = BertConfig(**sizes, num_attention_heads=HEADS, is_decoder=True)
    with pytest.raises(ValueError, match="no final norm beside"):
        kl.wrap(BertLMHeadModel(config), tokenizer)


def test_a_quantised_model_is_refused_by_name(tokenizer):
    model = build(KINDS["llama"].config)
    model.is_quantized = True
    model.config.quantization_config = type("Config", (), {"quant_method": "gptq"})()
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is quantised \(gptq\): .* load the model unquantised"):
        kl.wrap(model, tokenizer)


def test_an_encoder_decoder_is_refused(tokenizer):
    model = build(KINDS["llama"].config)
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="LlamaForCausalLM is an encoder-decoder; kedit-lab edits decoder-only"):
        kl.wrap(model, tokenizer)
