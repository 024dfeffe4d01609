"""Random models of every supported architecture, a few thousand weights each, and tokenizers trained on the spot."""

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

WIDTH, LAYERS, HEADS, VOCAB, INNER, WINDOW = 32, 3, 4, 512, 48, 4
END = "<|endoftext|>"
TEXTS = (
    "The employer of John Smith is Greek. John Smith's employer is in London.",
    "The native language of Mary Jones is Greek, and Mary Jones works in Paris.",
    "Therefore the capital of France is Paris; a city in Europe. I think so.",
    "Because you asked, we went to London. You know the language of the city.",
)

COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
MODERN = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
}
FULL = {key: value for key, value in MODERN.items() if key != "num_key_value_heads"}
GPT = COMMON | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "n_inner": INNER}
FALCON = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INNER,
}


@dataclass(frozen=True)
class Kind:
    """An architecture: its config, and where a reader of its source finds the parts."""

    config: Any
    blocks: str = "model.layers"
    mlp: str = "mlp.down_proj"
    attention: str = "self_attn.o_proj"
    norm: str = "model.norm"
    head: str = "lm_head"
    transposed: bool = False
    inner: int = INNER
    tuples: bool = False


def gpt(config: Any, mlp: str, attention: str, **more: Any) -> Kind:
    return Kind(config, "transformer.h", mlp, attention, "transformer.ln_f", **more)


def falcon(**options: Any) -> Kind:
    return gpt(FalconConfig(**FALCON, **options), "mlp.dense_4h_to_h", "self_attention.dense", tuples=True)


def neox(**options: Any) -> Kind:
    config = GPTNeoXConfig(**FULL, **options)
    return Kind(config, "gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm")


KINDS = {
    "gpt2": gpt(GPT2Config(**GPT), "mlp.c_proj", "attn.c_proj", transposed=True),
    "gptj": gpt(GPTJConfig(**GPT, rotary_dim=4), "mlp.fc_out", "attn.out_proj", tuples=True),
    "gpt-neo": gpt(
        GPTNeoConfig(
            **COMMON,
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            intermediate_size=INNER,
            max_position_embeddings=64,
            attention_types=[[["local", "global", "local"], 1]],
            window_size=WINDOW,
        ),
        "mlp.c_proj",
        "attn.attention.out_proj",
        tuples=True,
    ),
    "gpt-neox": neox(use_parallel_residual=True),
    "gpt-neox-sequential": neox(use_parallel_residual=False),
    "llama": Kind(LlamaConfig(**MODERN)),
    "mistral": Kind(MistralConfig(**MODERN, sliding_window=WINDOW)),
    "qwen2": Kind(Qwen2Config(**MODERN, tie_word_embeddings=True)),
    "qwen3": Kind(Qwen3Config(**MODERN, head_dim=8)),
    "gemma2": Kind(Gemma2Config(**MODERN, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW)),
    "falcon": falcon(),
    "falcon-alibi": falcon(alibi=True, parallel_attn=False, multi_query=False),
    "phi": Kind(PhiConfig(**FULL), mlp="mlp.fc2", attention="self_attn.dense", norm="model.final_layernorm"),
    "opt": Kind(
        OPTConfig(
            **COMMON,
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=INNER,
            max_position_embeddings=64,
        ),
        "model.decoder.layers",
        "fc2",
        "self_attn.out_proj",
        "model.decoder.final_layer_norm",
    ),
    "bloom": gpt(
        BloomConfig(**COMMON, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
        "mlp.dense_4h_to_h",
        "self_attention.dense",
        inner=4 * WIDTH,
        tuples=True,
    ),
    "gemma3": Kind(Gemma3TextConfig(**MODERN, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW)),
    "phi3": Kind(Phi3Config(**MODERN)),
    "olmo2": Kind(Olmo2Config(**MODERN)),
    "stablelm": Kind(StableLmConfig(**MODERN)),
    "cohere": Kind(CohereConfig(**MODERN, logit_scale=0.25)),
    "granite": Kind(GraniteConfig(**MODERN, logits_scaling=4.0)),
}


def build(config: Any, seed: int = 0, spread: float = 0.15) -> torch.nn.Module:
    """A model with weights large enough that every part matters: a fresh one is almost linear and has no biases."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model.eval()


def wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(lower: bool = False) -> PreTrainedTokenizerFast:
    """A GPT-2 like tokenizer; with ``lower`` it forgets capitals, which no editor can live with."""
    tokenizer = Tokenizer(models.BPE())
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrapped(tokenizer, eos_token=END, pad_token=END)


def sentence_piece(end: bool = False) -> PreTrainedTokenizerFast:
    """A Llama-2 like tokenizer: "▁" for spaces, a dummy "▁" first, bytes for unknown letters, and a BOS in front.

    With ``end`` it also closes every text with an end token, as T5's and some older tokenizers do.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=160, show_progress=False, min_frequency=2))
    pieces, merges = pieces_and_merges(trained)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: i for i, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def pieces_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """What a BPE has learned: pieces in order of id, and merges in order of rank."""
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def unigram() -> PreTrainedTokenizerFast:
    """A T5 like tokenizer: NFKC and single spaces before anything else, "▁" for spaces, a dummy "▁" first, bytes for
    unknown letters, and an end token behind every text."""
    tokenizer = Tokenizer(models.Unigram())
    single = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), single])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(20 * TEXTS, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    tokenizer.model = models.Unigram([*pieces, *((f"<0x{byte:02X}>", -20.0) for byte in range(256))], 2, True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return wrapped(tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def word_piece(letters: str = "") -> PreTrainedTokenizerFast:
    """A BERT like tokenizer: "##" inside words, no spaces, control characters left out, and one token for a word with
    other characters than those of the texts and of ``letters``."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    pieces = dict.fromkeys([*pieces, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer.model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return wrapped(tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[SEP]")
