"""Second moments C = E[k kᵀ] of an MLP's keys over plain text: what an edit should leave alone."""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache, partial
from itertools import islice
from pathlib import Path
from queue import Queue

import pandas as pd
import torch
from jaxtyping import Float
from joblib import delayed
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.extract.documents import Documents
from kedit_lab.extract.running import PIECE, Sum, Sums, accumulate, restore
from kedit_lab.facts.corpus import Writer
from kedit_lab.facts.sets import lab_world
from kedit_lab.model.hooks import record
from kedit_lab.model.lab import Lab, chunks, make_lab
from kedit_lab.model.offload import spread
from kedit_lab.model.process import Source, results, share, worker
from kedit_lab.model.request import usable
from kedit_lab.model.tokens import encode
from kedit_lab.types import several

DOCUMENTS = 1000
LENGTH = 200  # tokens of a document that count
# of a configuration, what keys do not depend on (weights' own dtypes are in the fingerprint)
UNREAD = ("_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label", "initializer_range",
          "label2id", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict",
          "transformers_version", "use_cache")  # fmt: skip
Texts = Sequence[str] | Documents


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
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, progress: bool = False,
    tolerance: float = 0.0, jobs: int = 1, backend: str = "loky", devices: Sequence[str] = (),
) -> Float[Tensor, "d_k d_k"]:  # fmt: skip
    """C = (1/T) Σ_t k_t k_tᵀ (uncentred) over all T tokens of the texts, of a long one the first 200, in float32
    (accumulated in float64).

    ``texts`` is a list, or ``kl.documents`` of a file or data set, which is streamed; 1,000 documents about the lab
    world unless given. The cache key is the content: weights, configuration, tokenizer, layer and texts. An unfinished
    run is written every minute and resumes; a file that is damaged, or was written for something else, is refused with
    a ValueError, and so is a cache folder without room, before anything is read. With a ``tolerance`` it ends once C
    has moved by less (relative to its norm) since half as many documents; ``kl.moment_drift`` shows how it went.

    With ``jobs`` above one, processes of joblib's ``backend`` each load the model anew and read pieces of the corpus,
    with the same result; the backend may be a cluster's, see ``kl.sweep``. With ``devices`` ("cuda:0", "cuda:1", ...)
    a copy of the model on each of them does, in threads of this process.
    """
    return stored(lab, layer, texts, cache, progress, tolerance, jobs, backend, devices)(torch.float32)


def moment_drift(
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, tolerance: float = 0.0
) -> pd.DataFrame:
    """How far C moved at every doubling of the corpus: ``documents``, ``tokens``, ``drift`` (computed if need be).

    The last row is the corpus' end, compared with the last doubling before it: where few documents came since, its
    drift is small however far C may still move.
    """
    read = stored(lab, layer, texts, cache, tolerance=tolerance)
    rows = restore(read.args[0], lab.arch.mlp[layer].d_in).drift
    return pd.DataFrame(rows, columns=["documents", "tokens", "drift"]).astype({"documents": int, "tokens": int})


def stored(
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, progress: bool = False,
    tolerance: float = 0.0, jobs: int = 1, backend: str = "loky", devices: Sequence[str] = (),
) -> partial[Float[Tensor, "d_k d_k"]]:  # fmt: skip
    """The second moment, computed and in its file, to be read when it is needed: C is large, and needed late."""
    layer = lab.arch.layer(layer)
    texts = checked(lab_text() if texts is None else texts)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; it is a share of ‖C‖, from 0 (read everything) to below 1")
    path = (Path(cache) if cache else cache_dir()) / f"moment-{content_key(lab, layer, texts, tolerance)}.safetensors"
    state = restore(path, lab.arch.mlp[layer].d_in)
    if not state.finished:
        total = (texts.total() if isinstance(texts, Documents) else len(texts)) if progress else None
        bar = tqdm(total=total, initial=state.documents, desc=f"second moment, layer {layer}", disable=not progress)
        accumulate(state, texts, summing(lab, layer, jobs, backend, devices), path, tolerance, bar)
    if not state.tokens:
        raise ValueError("texts hold no tokens; a second moment needs at least one")
    return partial(moment_in, path, lab.arch.mlp[layer].d_in, lab.anchor.device)


def checked(texts: Texts) -> Texts:
    """Texts of a corpus, as they are read; none, or one text alone, raises a ValueError."""
    if not isinstance(texts, Documents) and not (texts := several("texts", texts, str)):
        raise ValueError("texts is empty; a second moment needs at least one document")
    return texts


def content_key(lab: Lab, layer: int, texts: Texts, tolerance: float) -> str:
    """What a cached moment is of: weights, configuration, tokenizer, layer, texts, and when it may stop."""
    read = lab.model.config.get_text_config().to_diff_dict().items()
    settings = sorted((name, str(value)) for name, value in read if name not in UNREAD)
    tokens_of = lab.tokenizer.backend_tokenizer.to_str() if hasattr(lab.tokenizer, "backend_tokenizer") else ""
    corpus = [texts.digest, texts.field, texts.limit] if isinstance(texts, Documents) else list(texts)
    content = json.dumps(["4", lab.fingerprint(), settings, tokens_of, layer, LENGTH, PIECE, tolerance, corpus])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def summing(lab: Lab, layer: int, jobs: int, backend: str, devices: Sequence[str] = ()) -> Sums:
    """A function from pieces of the corpus to their sums, in order: here, in processes, or on several devices."""
    if devices:
        if jobs != 1:
            raise ValueError(f"jobs is {jobs!r} and devices are {devices!r}; give one of them")
        if isinstance(devices, str):
            raise ValueError(f"devices is {devices!r}; give a list of them, also for a single one")
        return beside(lab, layer, list(map(usable, devices)))
    threads = share(jobs)
    if jobs == 1:
        return lambda pieces: (piece(lab, layer, texts) for texts in pieces)
    source = Source.of(lab)
    return lambda pieces: results(
        (delayed(elsewhere)(source, threads, layer, texts) for texts in pieces), jobs, backend
    )


def beside(lab: Lab, layer: int, devices: Sequence[torch.device]) -> Sums:
    """Sums by copies of the model, one on each device, whichever is free; the lab itself serves on its own device."""
    if spread(lab.model):
        raise ValueError(
            "accelerate has placed this model's modules, and devices= copies a whole model to each device; load it "
            "without device_map, or leave devices out"
        )
    free: Queue[Lab] = Queue()
    for i, device in enumerate(devices):
        own = device == lab.anchor.device and device not in devices[:i]
        free.put(lab if own else make_lab(deepcopy(lab.model).to(device), lab.tokenizer, lab.name))

    def next_free(texts: Sequence[str]) -> Sum:
        copy = free.get()
        try:
            return piece(copy, layer, texts)
        finally:
            free.put(copy)

    return lambda pieces: results((delayed(next_free)(texts) for texts in pieces), len(devices), "threading")


def elsewhere(source: Source, threads: int, layer: int, texts: Sequence[str]) -> Sum:
    """A piece's sum in a worker process, on its share of the cores."""
    with worker(source, threads) as lab:
        return piece(lab, layer, texts)


def piece(lab: Lab, layer: int, texts: Sequence[str]) -> tuple[Float[Tensor, "d_k d_k"], int, int]:
    """(Σ k kᵀ in float64 on the CPU, tokens, documents) of some texts."""
    total, tokens = None, 0
    for moment, count in moments(lab, layer, texts):
        total, tokens = moment if total is None else total.add_(moment), tokens + count
    width = lab.arch.mlp[layer].d_in
    return torch.zeros(width, width, dtype=torch.float64) if total is None else total.double().cpu(), tokens, len(texts)


def moment_in(
    path: Path, d_k: int, device: torch.device, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "d_k d_k"]:
    """C of a finished file, to the precision of float32, in float64, as solvers need it, or in another dtype."""
    state = restore(path, d_k)
    if not state.finished:
        raise FileNotFoundError(f"{path} was deleted while an edit needed it; edit again")
    for row in state.total:  # nothing as large as C is made
        row.copy_(row.div_(state.tokens).float())
    return state.total.to(dtype).to(device)


@torch.no_grad()
def moments(lab: Lab, layer: int, texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "d_k d_k"], int]]:
    """(Σ k kᵀ, number of tokens) of batches of texts of similar length, on the layer's device."""
    length = min(LENGTH, lab.arch.positions or LENGTH)
    rows = sorted((encode(lab.tokenizer, text)[0][:length] for text in texts), key=len)
    with record(lab, "key", [layer], stop=True) as seen:
        for batch in chunks([row for row in rows if row], 32):
            inputs = lab.batch(batch)
            seen.forward(**inputs, use_cache=False)
            mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
            for i, row in enumerate(batch):
                mask[i, : len(row)] = True
            states = seen["key", layer]
            flat = states[mask.to(states.device)]
            yield product(flat, precision(flat.device)), len(flat)


def precision(device: torch.device) -> torch.dtype:
    """float64 on a CPU; float32 elsewhere, where float64 is slow or missing: a piece's error is under 1e-5, unless
    PyTorch was told to multiply float32 with fewer digits."""
    single = device.type != "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if single else torch.float64


def product(keys: Float[Tensor, "tokens d_k"], exact: torch.dtype) -> Float[Tensor, "d_k d_k"]:
    """Σ k kᵀ in a precision."""
    keys = keys.to(exact)
    return keys.T @ keys
