"""Models from a folder, already loaded ones, and ones that accelerate has spread: the same lab, or a clear refusal."""

import gc
import json
import socket
from copy import deepcopy
from warnings import catch_warnings, simplefilter

import huggingface_hub.constants
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import BertConfig, BertLMHeadModel, LlamaModel, T5Config, T5ForConditionalGeneration, XGLMConfig

import kedit_lab as kl
from kedit_lab.model import offload, process
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


def test_auto_is_the_dtype_that_a_model_was_saved_in(folder, tmp_path):
    lab = kl.load(folder, "bfloat16")
    lab.model.save_pretrained(tmp_path)
    lab.tokenizer.save_pretrained(tmp_path)
    assert kl.load(tmp_path).anchor.dtype == torch.float32
    again = kl.load(tmp_path, "auto")
    assert again.anchor.dtype == torch.bfloat16
    assert again.fingerprint() == lab.fingerprint()


def test_workers_spread_a_model_as_it_was(folder, monkeypatch):
    places = {"model": "cpu", "lm_head": "cpu"}
    lab = kl.load(folder, device_map=places)
    lab.model.hf_device_map = places  # as transformers notes it where there are several devices
    asked = []
    monkeypatch.setattr(process, "load", lambda *how, **more: asked.append(how) or kl.load(*how, **more))
    assert process.loaded(process.Source.of(lab)).fingerprint() == lab.fingerprint()
    assert asked == [(str(folder), torch.float32, "cpu", places)]


def test_what_a_pass_may_hold_is_kept(folder, tokenizer):
    lab = kl.load(folder, work=2e6)
    assert lab.work == kl.wrap(lab.model, tokenizer, work=2e6).work == 2e6
    assert process.loaded(process.Source.of(lab)).work == 2e6
    assert kl.load(folder).work is None
    for wrong in (0, 0.5, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"work is .*; give the bytes that a pass may hold, at least 1, or None"):
            kl.load(folder, work=wrong)


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


def reconfigured(folder, **fields):
    """A model's folder with other fields in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_weights_that_are_not_there_are_not_drawn(folder, tokenizer, tmp_path):
    """Nothing of a model is random: not a head, not a layer, not a matrix of another width."""
    bare = LlamaModel(build(KINDS["llama"].config).config)
    bare.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare lacks 1 of the model's weights, lm_head\.weight the first.*random"):
        kl.load(tmp_path / "bare")
    with pytest.raises(ValueError, match=rf"lacks 9 of the model's weights, model\.layers\.{LAYERS}\.\w+"):
        kl.load(reconfigured(folder, num_hidden_layers=LAYERS + 1))
    wider = reconfigured(folder, num_hidden_layers=LAYERS, intermediate_size=INNER + 2)
    with pytest.raises(ValueError, match=rf"down_proj\.weight of .* \({WIDTH}, {INNER}\).*\({WIDTH}, {INNER + 2}\)"):
        kl.load(wider)


def test_damaged_weights_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"the weights of .*model cannot be read \(.*\); fetch or save the model again"
    ):
        kl.load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors"])
def test_a_quantised_folder_is_refused_before_its_library_is_asked_for(folder, method):
    reconfigured(folder, quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(ValueError, match=rf"model is quantised \({method}\): its weights are codes"):
        kl.load(folder)


def test_an_encoder_decoder_folder_is_refused(tokenizer, tmp_path):
    sizes = {"d_model": WIDTH, "d_ff": INNER, "num_layers": 1, "num_heads": HEADS, "d_kv": 8, "vocab_size": VOCAB}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(t5\); kedit-lab edits decoder-only transformers"):
        kl.load(tmp_path)


def test_a_model_with_an_adapter_is_refused(folder, tokenizer, tmp_path, monkeypatch):
    """Its low-rank matrices are no projections of the model; merged, they are gone."""
    made = kl.edit(kl.load(folder), [FACT], RECIPE, moment_texts=TEXTS, cache=tmp_path)
    where = made.to_peft(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    for path in (where, "adapter", "./adapter"):
        with pytest.raises(
            ValueError, match=r"adapter holds a peft adapter; merge it into its model, .*merge_and_unload"
        ):
            kl.load(path)
    beside = build(KINDS["llama"].config)
    beside.load_adapter(str(where))
    with catch_warnings():
        simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
        wrapped = PeftModel.from_pretrained(build(KINDS["llama"].config), where)
    for model in (beside, wrapped):
        with pytest.raises(ValueError, match=r"ForCausalLM carries a peft adapter, .*merge_and_unload\(\)"):
            kl.wrap(model, tokenizer)
    merged = kl.wrap(wrapped.merge_and_unload(), tokenizer)
    plain = kl.load(folder)
    for layer in RECIPE.layers:
        change = merged.arch.mlp[layer].module.weight - plain.arch.mlp[layer].module.weight
        torch.testing.assert_close(change, made.delta(layer).float(), rtol=1e-3, atol=1e-6)


XGLM = XGLMConfig(vocab_size=VOCAB, d_model=WIDTH, ffn_dim=INNER, num_layers=2, attention_heads=HEADS,
                  max_position_embeddings=64)  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, "xglm"])
def test_positions_end_where_a_model_has_no_more(name, tokenizer):
    """A model with so many positions fails at one token more; one without a bound reads on."""
    lab = kl.wrap(build(XGLM if name == "xglm" else KINDS[name].config), tokenizer)
    most = lab.arch.positions or getattr(lab.model.config.get_text_config(), "max_position_embeddings", 64)
    read = lambda tokens: lab.model(input_ids=torch.ones(1, tokens, dtype=torch.long)).logits  # noqa: E731
    assert read(most).isfinite().all()
    if lab.arch.positions is None:
        assert read(most + 1).isfinite().all()
    else:
        with pytest.raises((IndexError, RuntimeError)):
            read(most + 1)


def test_texts_that_a_model_cannot_read_are_refused(tokenizer, folder):
    """Learned positions end, and so do embeddings; rotary positions go on."""
    lab = kl.wrap(build(KINDS["gpt2"].config), tokenizer)
    long = kl.Fact("John", "word " * lab.arch.positions + "{} is", "Greek")
    for read in (
        kl.evaluate,
        lambda *of: kl.keys(*of, 0),
        lambda lab, facts: kl.edit(lab, facts, "memit", layers=(0,)),
    ):
        with pytest.raises(
            ValueError, match=rf"a text has \d+ tokens, and this model has {lab.arch.positions} positions"
        ):
            read(lab, [long])
    new = lab.arch.positions + 1 - len(lab.encode("John is")[0])
    assert len(lab.tokenizer(lab.generate(["John is"], tokens=new)[0])["input_ids"]) > 3
    with pytest.raises(ValueError, match=r"a text has \d+ tokens"):
        lab.generate(["John is"], tokens=new + 1)
    assert kl.load(folder).arch.positions is None
    with pytest.raises(
        ValueError, match=rf"a text has token {VOCAB}, and this model knows {VOCAB}; load the tokenizer"
    ):
        lab.batch([[1, VOCAB]])


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


@pytest.fixture
def offloaded(tokenizer):
    """offloaded(kind, device): a lab whose weights rest on the CPU, and whose modules run on a device."""
    return lambda kind, device="cpu": kl.wrap(cpu_offload(build(KINDS[kind].config), torch.device(device)), tokenizer)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_a_model_offloaded_to_the_cpu_is_edited_like_any_other(kind, device, offloaded, tokenizer, tmp_path):
    lab, plain = offloaded(kind, device), kl.wrap(build(KINDS[kind].config), tokenizer)
    base = plain.fingerprint()
    assert lab.fingerprint() == base
    assert lab.anchor.device.type == device
    assert f"cpu (offloaded, runs on {device}" in kl.doctor(lab, rate=(1e12, 1e11))["dtype and device"]
    assert {p.device.type for p in lab.model.parameters()} == {"cpu"}
    tied = lab.model.get_input_embeddings().weight is lab.model.get_output_embeddings().weight
    assert tied == (plain.model.get_input_embeddings().weight is plain.model.get_output_embeddings().weight)
    for method in ("memit", "ft-m", "lora"):
        more = {"steps": 4, "lam": 1.0} if method == "memit" else {"epochs": 2, "stop": 0.0}
        made, wanted = (kl.edit(x, [FACT], method, TEXTS, tmp_path, layers=(0, 1), **more) for x in (lab, plain))
        assert set(made.deltas) == set(wanted.deltas)
        for name, delta in made.deltas.items():
            theirs = wanted.deltas[name].matrix()
            torch.testing.assert_close(delta.matrix().cpu(), theirs, rtol=1e-3, atol=1e-5, check_dtype=False)
        with made.applied(), wanted.applied():
            assert lab.fingerprint() != base
            told, plainly = (kl.evaluate(x, [FACT], kinds=["rewrite"])["nll"][0] for x in (lab, plain))
        assert told == pytest.approx(plainly, rel=1e-3)
        assert lab.fingerprint() == base


def gradient(lab):
    """Of the log-likelihood of a token, with respect to a shift of the first block's output; and the number itself."""
    shift = torch.zeros(1, 1, WIDTH, requires_grad=True)
    with torch.enable_grad(), kl.replace(lab, "block", 0, lambda hidden: hidden + shift):
        said = lab.model(**lab.batch([[5, 6, 7]]), use_cache=False).logits.float().log_softmax(-1)[0, -1, 3]
    return lambda: torch.autograd.grad(said, shift)[0]


def test_a_pass_holds_copies_of_one_modules_weights_at_a_time(offloaded, tokenizer, monkeypatch):
    """Also between the pass and its way back, which needs them all again; gradients are those of a model at home."""
    lab, plain = offloaded("llama"), kl.wrap(build(KINDS["llama"].config), tokenizer)
    lent, alive, copied = [], [], offload.copied

    def noted(tensor, device):
        alive.append(sum(not known.expired() for known in lent))
        copy = copied(tensor, device)
        lent.append(StorageWeakRef(copy.untyped_storage()))
        return copy

    monkeypatch.setattr(offload, "copied", noted)
    back = gradient(lab)
    there = len(lent)
    assert all(known.expired() for known in lent)
    torch.testing.assert_close(back(), gradient(plain)())
    assert len(lent) > there
    assert max(alive) <= 1


def test_a_pass_without_a_way_back_leaves_nothing(offloaded):
    """What an operation saves of its own result (RMSNorm's root) must not keep it alive."""
    lab, kept = offloaded("llama"), []
    for block in lab.arch.blocks:
        block.register_forward_hook(lambda _m, _a, out: kept.append(StorageWeakRef(out.untyped_storage())))
    gradient(lab)
    gc.collect()
    assert len(kept) == LAYERS
    assert all(known.expired() for known in kept)


def test_resting_weights_are_back_after_an_error_in_their_module(offloaded, monkeypatch):
    lab = offloaded("llama")
    before = {name: (p, p.clone()) for name, p in lab.model.named_parameters()}
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lab.model(**lab.batch([[5, 6, 7]]))
    assert all(p is before[name][0] and torch.equal(p, before[name][1]) for name, p in lab.model.named_parameters())


def test_a_copy_of_an_offloaded_model_lends_its_own_weights(offloaded):
    lab = offloaded("llama")
    other = kl.wrap(deepcopy(lab.model), lab.tokenizer)
    before, said = lab.fingerprint(), lab.ask("The city")
    with torch.no_grad():
        other.arch.mlp[0].module.weight.mul_(3)
    assert lab.fingerprint() == before
    assert lab.ask("The city").equals(said)
    assert not other.ask("The city").equals(said)


def test_a_model_that_accelerate_has_placed_is_not_copied_to_devices(offloaded, tmp_path):
    with pytest.raises(ValueError, match="load it without device_map, or leave devices out"):
        kl.second_moment(offloaded("llama"), 0, TEXTS, cache=tmp_path, devices=["cpu", "cpu"])


def test_weights_on_a_disk_are_told_from_those_on_the_cpu(tokenizer, tmp_path):
    model, blocks = build(KINDS["llama"].config), {f"model.layers.{i}": "cpu" for i in range(1, LAYERS)}
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    model = dispatch_model(model, {"model.layers.0": "disk"} | blocks | places, "cpu", offload_dir=tmp_path)
    there = len(list(model.model.layers[0].parameters()))
    with pytest.raises(ValueError, match=rf"^{there} weights are offloaded to a disk .*, model\.layers\.0\."):
        kl.wrap(model, tokenizer)


def test_weights_offloaded_to_a_disk_are_refused(tokenizer, tmp_path):
    model = disk_offload(build(KINDS["llama"].config), tmp_path, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"weights are offloaded to a disk .*, model\.\S+ the first; .*device_map.*CPU"
    ):
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
