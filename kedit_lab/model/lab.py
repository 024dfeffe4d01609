"""The lab: a model, its tokenizer and its named parts, exactly as Hugging Face gives them."""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from kedit_lab.model import request
from kedit_lab.model.arch import Arch
from kedit_lab.model.chat import Chat
from kedit_lab.model.offload import runs_on, settle
from kedit_lab.model.tokens import (
    Encoded,
    Row,
    answer_rows,
    asked_ids,
    encode,
    essence_rows,
    fact_prompts,
    fact_row,
    fact_rows,
    must_be_fast,
    pad,
    target_ids,
)
from kedit_lab.paths import data_dir
from kedit_lab.types import Fact, several, within

SEEDS = ("The", "Therefore", "Because", "I", "You")
STRIDE, PIECE = 1 << 20, 1 << 16  # entries whose products a checksum sums as they wrap, and takes at a time


@cache
def accepted(model: type) -> frozenset[str]:
    """The names of what the forward of a class of models takes."""
    return frozenset(inspect.signature(model.forward).parameters)


@dataclass(frozen=True)
class Lab:
    """What a notebook holds: ``model`` and ``tokenizer`` are Hugging Face's own objects, ``arch`` their parts.

    With a ``chat`` every prompt is posed in the tokenizer's chat template (see ``Chat``), for keys, targets, metrics
    and generation alike. Plain text (prefixes, second moments, perplexity) is read as it is. ``work``: see ``load``.
    """

    model: Any
    tokenizer: Any
    arch: Arch
    name: str = ""
    chat: Chat | None = None
    work: float | int | None = None

    def __post_init__(self) -> None:
        if self.work is not None and not within(self.work, 1):
            raise ValueError(f"work is {self.work!r}; give the bytes that a pass may hold, at least 1, or None")

    @property
    def anchor(self) -> Tensor:
        """A tensor whose device and dtype new tensors follow."""
        module = self.arch.mlp[0].module
        runs = runs_on(module)
        return module.weight if module.weight.device == runs else module.weight.new_empty(0, device=runs)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(p.nbytes for p in self.model.parameters())

    def with_chat(self, on: bool = True) -> "Lab":
        """The same model asked in its tokenizer's chat template, or without. Raises ValueError if there is none."""
        return replace(self, chat=Chat.of(self.tokenizer) if on else None)

    def encode(self, prompt: str) -> Encoded:
        """(ids, character offsets in the prompt) of a prompt as this lab poses it."""
        return encode(self.tokenizer, prompt, self.chat)

    def target(self, text: str) -> tuple[int, ...]:
        """The ids of an answer behind a prompt."""
        return target_ids(self.tokenizer, text, self.chat)

    def row(self, fact: Fact, prefix: str = "", rule: str = "subject_last", target: str | None = None) -> Row:
        """The token row of a fact behind a prefix; ``target`` is ``target_new`` unless given."""
        return fact_row(self.tokenizer, fact, prefix, rule, target, self.chat)

    def prompts(self, facts: Sequence[Fact], prefixes: Sequence[str] = ("",),
                rule: str = "subject_last") -> list[tuple[tuple[int, ...], int]]:  # fmt: skip
        """(ids, position that the rule names) of every fact's prompt behind each prefix, fact by fact."""
        return fact_prompts(self.tokenizer, facts, prefixes, rule, self.chat)

    def rows(self, facts: Sequence[Fact], prefixes: Sequence[str] = ("",),
             rule: str = "subject_last") -> list[list[Row]]:  # fmt: skip
        """Per fact, its token rows behind each prefix."""
        return fact_rows(self.tokenizer, facts, prefixes, rule, self.chat)

    def answer_rows(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """The token rows of (prompt, answer) pairs."""
        return answer_rows(self.tokenizer, pairs, self.chat)

    def essences(self, subjects: Sequence[str]) -> list[Row]:
        """The rows "{subject} is a" (MEMIT's KL prompt)."""
        return essence_rows(self.tokenizer, subjects, self.chat)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a padded batch that this model's forward accepts (BLOOM, say, takes no position ids)."""
        taken = accepted(type(self.model))
        return {name: tensor for name, tensor in batch.items() if name in taken}

    def batch(self, rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
        """Token rows as padded model inputs on the model's device; a ValueError for one that the model cannot read."""
        self.arch.fit(rows)
        return self.inputs(pad(rows, self.anchor, left))

    def hidden(self, **inputs: Any) -> Float[Tensor, "rows tokens d_model"]:
        """Hidden states behind the final norm; ``arch.logits`` turns chosen positions into logits."""
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def ask(self, prompt: str, k: int = 5, tokens: int = 8) -> pd.DataFrame:
        """The k likeliest first tokens after a prompt, each continued greedily: ``continuation``, ``probability``.
        Raises ValueError for a prompt without tokens, and for a ``k`` that is no number of the model's tokens."""
        ids = asked_ids(self.tokenizer, prompt, self.chat)
        if not isinstance(k, Integral) or not 1 <= k <= len(self.arch.head.weight):
            raise ValueError(f"k is {k!r}; the model knows {len(self.arch.head.weight)} tokens: ask for 1 or more")
        logits = self.arch.logits(self.hidden(**self.batch([ids]))[:, -1])
        top = logits[0].float().softmax(-1).topk(k)
        rows = [[*ids, int(first)] for first in top.indices]
        out = self.continued(self.batch(rows), tokens)
        texts = [self.tokenizer.decode(row[len(ids) :], skip_special_tokens=True) for row in out]
        return pd.DataFrame({"continuation": [one_line(t) for t in texts], "probability": top.values.tolist()})

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], tokens: int = 40) -> list[str]:
        """Greedy continuations, prompt included, of several prompts at once; in a chat a space parts the two. Raises
        ValueError for a prompt without tokens."""
        prompts = several("prompts", prompts, str)
        rows = [asked_ids(self.tokenizer, prompt, self.chat) for prompt in prompts]
        if not rows:
            return []
        batch = self.batch(rows, left=True)
        batch.pop("position_ids", None)
        out = self.continued(batch, tokens)
        width = batch["input_ids"].shape[1]
        texts = [self.tokenizer.decode(row[width:], skip_special_tokens=True) for row in out]
        texts = [text if self.chat is None else f" {text.lstrip()}" for text in texts]
        return [prompt.rstrip() + text for prompt, text in zip(prompts, texts, strict=True)]

    def continued(self, batch: dict[str, Tensor], tokens: int) -> Int[Tensor, "rows length"]:
        """The ids of rows and of their plain greedy continuations, whatever the model's own settings are."""
        self.arch.reach(batch["input_ids"].shape[1] + tokens - 1)  # the last new token is not read
        pads = self.tokenizer.pad_token_id
        end = self.tokenizer.eos_token_id
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return self.model.generate(**inputs, **greedy, pad_token_id=end if pads is None else pads,
                                   max_new_tokens=tokens)  # fmt: skip

    @torch.no_grad()
    def prefixes(self, count: int = 5, length: int = 10, seed: int = 0) -> tuple[str, ...]:
        """Random contexts for keys and values: texts of ``length`` tokens sampled (top-k 5) from a few seed words.

        Each ends in ". ", so that a prompt can follow. The same seed gives the same texts (MEMIT, context templates).
        """
        words = [SEEDS[i % len(SEEDS)] for i in range(count)]
        texts = []
        for i, word in enumerate(words):
            ids, _ = encode(self.tokenizer, word)
            generator = torch.Generator().manual_seed(1_000_003 * seed + i)
            while len(ids) < length:
                logits = self.arch.logits(self.hidden(**self.batch([ids]))[:, -1])[0].float().cpu()
                top = logits.topk(5)
                choice = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
                ids.append(int(top.indices[choice]))
            text = one_line(self.tokenizer.decode(ids, skip_special_tokens=True))
            texts.append(text.replace("{", " ").replace("}", " ") + ". ")
        return tuple(texts)

    def fingerprint(self) -> str:
        """A short hash of all weights, every bit of them: which base an edit belongs to."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{checksum(tensor)}".encode())
        return digest.hexdigest()[:16]


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """A sum over a tensor's bits, weighted by position, that changes with any entry."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(sizes[tensor.element_size()])
    total, piece = 0, PIECE if bits.is_cpu else STRIDE
    for stride in range(0, len(bits), STRIDE):
        found = torch.zeros((), dtype=torch.int64, device=bits.device)
        for start in range(stride, min(stride + STRIDE, len(bits)), piece):
            part = bits[start : start + piece].long()
            place = torch.arange(start + 1, start + 1 + len(part), device=part.device) * 2_654_435_761 % 2_147_483_647
            found += (part * place).sum()
        total += int(found)
    return total


def one_line(text: str) -> str:
    """A text with its line breaks folded into spaces."""
    return " ".join(text.split())


def make_lab(model: Any, tokenizer: Any, name: str = "", chat: bool = False,
             work: float | int | None = None) -> Lab:  # fmt: skip
    """A lab around an already loaded model and tokenizer (``kl.wrap``): evaluation mode, no gradients for weights.

    The model may be spread over devices by accelerate, if all its weights are in memory: those that it has offloaded to
    the CPU rest in their modules from now on (see ``offload``). With ``chat`` prompts are posed in the tokenizer's chat
    template; ``work``: see ``load``. Raises ValueError where weights are on a disk, quantised, NaN or infinite, for
    models that are not causal, no fast tokenizer, a chat without a template, and ``work`` that is no number of bytes.
    """
    arch = Arch.of(model)
    must_be_fast(tokenizer)
    model.eval().requires_grad_(False)
    settle(model)
    away = [path for path, weight in model.named_parameters() if weight.is_meta]
    if away:
        raise ValueError(
            f"{len(away)} weights are offloaded to a disk (or by preload_module_classes), {away[0]} the first; an edit "
            "reads and writes weights in memory: use a smaller dtype (bfloat16), or a device_map whose devices and CPU "
            "hold the whole model"
        )
    lab = Lab(model, tokenizer, arch, name, Chat.of(tokenizer) if chat else None, work)
    for path, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{path} holds NaN or infinite values; load an undamaged checkpoint")
    check_logits(lab)
    return lab


@torch.no_grad()
def check_logits(lab: Lab) -> None:
    """Raise a ValueError unless ``arch.logits`` of the hidden states is what the model returns, on two tokens, and the
    first token's do not see the second."""
    batch = lab.batch([[1, 2], [1, 3]])
    theirs, ours = lab.model(**batch, use_cache=False).logits.float(), lab.arch.logits(lab.hidden(**batch)).float()
    if (ours - theirs.to(ours)).abs().max() > 0.01 * theirs.abs().max():
        raise ValueError(
            f"{type(lab.model).__name__} does something to its logits that kedit-lab does not know: they are not its "
            "output embedding applied to the final norm; open an issue that names the model"
        )
    if (theirs[0, 0] - theirs[1, 0]).abs().max() > 0.01 * theirs.abs().max():
        raise ValueError(
            f"{type(lab.model).__name__} reads in both directions: its first token's logits depend on the second. An "
            "encoder has no next token to edit; load a causal language model"
        )


def load(path: str | Path | None = None, dtype: str | torch.dtype = torch.float32, device: str | torch.device = "cpu",
         device_map: str | dict[str, Any] | None = None, local_only: bool = False,
         revision: str | None = None, chat: bool = False, work: float | int | None = None) -> Lab:  # fmt: skip
    """The embedded lab model, or any causal LM from a folder or a hub name, in ``dtype`` on ``device``.

    ``dtype`` is one of torch, its name, or "auto": what the model was saved in. ``device_map`` ("auto", or a dict from
    module paths to devices) lets accelerate spread the layers over several devices instead; what it offloads to the CPU
    is copied to the device module by module in every pass, what it offloads to a disk is refused. ``revision`` is a hub
    model's branch, tag or commit; with ``local_only`` nothing is asked of the network. Safetensors only, no remote
    code. With ``chat`` prompts are posed in the tokenizer's chat template (``lab.with_chat()`` does it later). A model
    that is loaded already goes into ``kl.wrap(model, tokenizer)``.

    ``work`` bytes are what a pass that reads keys or seeks target values may hold beside the model (None: half of what
    a GPU has beside the model; on a CPU a sixth of the model, or 128 MB, aligned recipes' (EAMET's) 192 MB, if that is
    more). With less an edit is slower; aligned recipes then find other values, as those depend on what is sought
    together, unless ``block`` is given. Raises OSError for a folder that is not there and (from transformers) for an
    unknown name, ValueError for a model that cannot be edited (quantised, an encoder, with an adapter), files that are
    damaged or lack weights, a dtype without edits, a chat without a template, a device that is not there, or ``work``
    that is no number of bytes.
    """
    path = path or data_dir() / "lab-model"
    path, dtype, device = request.local(path), request.known(dtype), request.usable(device)
    placed = request.placed(device_map)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local_only}
    options |= {"revision": revision} if revision else {}
    logging.disable_progress_bar()  # it would be written into every notebook
    model = request.checkpoint(path, dtype, options, placed)
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    return make_lab(model if placed else model.to(device), tokenizer, str(path), chat, work)


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive slices of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
