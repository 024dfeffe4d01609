"""Second moments C = E[k kᵀ] of an MLP's keys over plain text: what an edit should leave alone."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.facts.corpus import Writer
from kedit_lab.facts.sets import lab_world
from kedit_lab.model.hooks import record
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.tokens import encode
from kedit_lab.paths import whole

DOCUMENTS = 1000
LENGTH = 200  # tokens of a document that count
CHECKPOINT = 512  # documents between two writes of an unfinished moment


def cache_dir() -> Path:
    """Where moments are kept: ``$KEDIT_LAB_CACHE``, or ``kedit-lab`` in the user's cache folder."""
    base = os.environ.get("KEDIT_LAB_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kedit-lab"


@cache
def lab_text(count: int = DOCUMENTS, seed: int = 1) -> tuple[str, ...]:
    """Plain documents about the lab world, the default corpus: drawn from the generator, seeded."""
    documents = Writer(lab_world(), random.Random(seed)).documents()
    return tuple("".join(text for text, _ in pieces) for pieces in islice(documents, count))


def second_moment(
    lab: Lab, layer: int, texts: Sequence[str] | None = None, cache: Path | None = None, progress: bool = False
) -> Float[Tensor, "d_k d_k"]:
    """C = (1/T) Σ_t k_t k_tᵀ (uncentred) over all T tokens of the texts, in float32 (accumulated in float64).

    The cache key is the content: weights, tokenizer, layer and texts. An unfinished run resumes from its last
    checkpoint; a file of another shape is refused with a ValueError. ``texts`` is 1,000 documents about the lab world
    unless given.
    """
    return stored(lab, layer, texts, cache, progress)()


def stored(
    lab: Lab, layer: int, texts: Sequence[str] | None = None, cache: Path | None = None, progress: bool = False
) -> Callable[[], Float[Tensor, "d_k d_k"]]:
    """The second moment, computed and in its file, to be read when it is needed: C is large, and needed late."""
    layer = lab.arch.layer(layer)
    texts = lab_text() if texts is None else list(texts)
    if not texts:
        raise ValueError("texts is empty; a second moment needs at least one document")
    tokens_of = lab.tokenizer.backend_tokenizer.to_str() if hasattr(lab.tokenizer, "backend_tokenizer") else ""
    content = json.dumps([lab.fingerprint(), tokens_of, layer, LENGTH, texts])
    content = hashlib.sha256(content.encode()).hexdigest()[:24]
    path = (cache or cache_dir()) / f"moment-{content}.safetensors"
    total, tokens, done = restore(path, lab.arch.mlp[layer].d_in)
    bar = tqdm(total=len(texts), initial=done, desc=f"second moment, layer {layer}", disable=not progress)
    while done < len(texts):
        part = texts[done : done + CHECKPOINT]
        for moment, count in moments(lab, layer, part):
            total.add_(moment)
            tokens += count
        done += len(part)
        bar.update(len(part))
        with whole(path) as temporary:
            save_file({"total": total, "counts": torch.tensor([tokens, done])}, temporary)
    bar.close()
    if not tokens:
        raise ValueError("texts hold no tokens; a second moment needs at least one")
    return partial(moment_in, path, lab.arch.mlp[layer].d_in, lab.anchor.device)


def moment_in(path: Path, d_k: int, device: torch.device) -> Float[Tensor, "d_k d_k"]:
    """C of a finished file."""
    total, tokens, _ = restore(path, d_k)
    if not tokens:
        raise FileNotFoundError(f"{path} was deleted while an edit needed it; edit again")
    return total.div_(tokens).float().to(device)


@torch.no_grad()
def moments(lab: Lab, layer: int, texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "d_k d_k"], int]]:
    """(Σ k kᵀ, number of tokens) of batches of texts of similar length, in float64 on the CPU."""
    rows = sorted((encode(lab.tokenizer, text)[0][:LENGTH] for text in texts), key=len)
    with record(lab, "key", [layer], stop=True) as seen:
        for batch in chunks([row for row in rows if row], 32):
            inputs = lab.batch(batch)
            seen.forward(**inputs, use_cache=False)
            mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
            for i, row in enumerate(batch):
                mask[i, : len(row)] = True
            flat = seen["key", layer][mask.to(lab.anchor.device)].double()
            yield (flat.T @ flat).cpu(), len(flat)


def restore(path: Path, d_k: int) -> tuple[Tensor, int, int]:
    """(Σ k kᵀ, tokens, documents done) of an earlier run, or zeros."""
    if not path.exists():
        return torch.zeros(d_k, d_k, dtype=torch.float64), 0, 0
    try:
        saved = load_file(path)
        total, (tokens, done) = saved["total"], saved["counts"].tolist()
    except Exception as error:
        raise ValueError(f"{path} is not a readable second moment ({error}); delete it to compute it anew") from error
    if total.shape != (d_k, d_k):
        raise ValueError(f"{path} holds a {tuple(total.shape)} moment but the layer needs {(d_k, d_k)}; delete it")
    return total, tokens, done
