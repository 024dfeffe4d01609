"""Second moments C = E[k kᵀ] of an MLP's keys over plain text: what an edit should leave alone."""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from joblib import Parallel, delayed, parallel_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.extract.documents import Documents
from kedit_lab.facts.corpus import Writer
from kedit_lab.facts.sets import lab_world
from kedit_lab.model.hooks import record
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.process import Source, loaded, share
from kedit_lab.model.tokens import encode
from kedit_lab.paths import whole

DOCUMENTS = 1000
LENGTH = 200  # tokens of a document that count
PIECE = 128  # documents that are summed before the next look at the drift and the clock
SAVE_EVERY = 60.0  # seconds between two writes of an unfinished moment
Texts = Sequence[str] | Documents
Sum = tuple[Tensor, int, int]  # Σ k kᵀ, tokens, documents
Sums = Callable[[Iterable[list[str]]], Iterator[Sum]]


def cache_dir() -> Path:
    """Where moments are kept: ``$KEDIT_LAB_CACHE``, or ``kedit-lab`` in the user's cache folder."""
    base = os.environ.get("KEDIT_LAB_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kedit-lab"


@cache
def lab_text(count: int = DOCUMENTS, seed: int = 1) -> tuple[str, ...]:
    """Plain documents about the lab world, the default corpus: drawn from the generator, seeded."""
    documents = Writer(lab_world(), random.Random(seed)).documents()
    return tuple("".join(text for text, _ in pieces) for pieces in islice(documents, count))


@dataclass
class Running:
    """Σ k kᵀ over ``documents`` documents with ``tokens`` tokens, and the same when half as many had been read.

    ``drift`` has (documents, tokens, ‖C - C_half‖ / ‖C‖) at every doubling, and at the end.
    """

    total: Float[Tensor, "d_k d_k"]
    tokens: int = 0
    documents: int = 0
    half: Tensor | None = None
    half_tokens: int = 0
    drift: list[tuple[float, float, float]] = field(default_factory=list)
    finished: bool = False

    def add(self, moment: Tensor, tokens: int, documents: int) -> None:
        """One more piece; at 2, 4, 8, ... pieces the drift is noted and this sum becomes the half of the next."""
        self.total.add_(moment)
        self.tokens, self.documents = self.tokens + tokens, self.documents + documents
        pieces = self.documents // PIECE
        if self.documents % PIECE == 0 and pieces & (pieces - 1) == 0:
            self.note()
            self.half, self.half_tokens = self.total.clone(), self.tokens

    def note(self) -> None:
        """Note how far C has moved since half as many documents."""
        if self.half is not None and self.half_tokens and self.tokens > self.half_tokens:
            now = self.total / self.tokens
            moved = float((now - self.half / self.half_tokens).norm() / now.norm())
            self.drift.append((self.documents, self.tokens, moved))

    def finish(self) -> None:
        """Nothing more will come: the last drift is noted, what it was measured against is let go."""
        if not self.drift or self.drift[-1][0] != self.documents:
            self.note()
        self.half, self.half_tokens, self.finished = None, 0, True

    def save(self, path: Path) -> None:
        counts = torch.tensor([self.tokens, self.documents, self.half_tokens, int(self.finished)])
        tensors = {"total": self.total, "counts": counts, "drift": torch.tensor(self.drift, dtype=torch.float64)}
        with whole(path) as temporary:
            save_file(tensors | ({} if self.half is None else {"half": self.half}), temporary)


def second_moment(
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, progress: bool = False,
    tolerance: float = 0.0, jobs: int = 1, backend: str = "loky",
) -> Float[Tensor, "d_k d_k"]:  # fmt: skip
    """C = (1/T) Σ_t k_t k_tᵀ (uncentred) over all T tokens of the texts, in float32 (accumulated in float64).

    ``texts`` is a list, or ``kl.documents`` of a file or data set, which is streamed; 1,000 documents about the lab
    world unless given. The cache key is the content: weights, tokenizer, layer and texts. An unfinished run is
    written every minute and resumes; a damaged file, or one of another shape, is refused with a ValueError.
    With a ``tolerance`` it ends once C has moved by less (relative to its norm) since half as many documents;
    ``kl.moment_drift`` shows how it went. With ``jobs`` above one, processes of joblib's ``backend`` each load the
    model anew and read pieces of the corpus, with the same result.
    """
    return stored(lab, layer, texts, cache, progress, tolerance, jobs, backend)()


def moment_drift(
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, tolerance: float = 0.0
) -> pd.DataFrame:
    """How far C moved at every doubling of the corpus: ``documents``, ``tokens``, ``drift`` (computed if need be)."""
    read = stored(lab, layer, texts, cache, tolerance=tolerance)
    rows = restore(read.args[0], lab.arch.mlp[layer].d_in).drift
    return pd.DataFrame(rows, columns=["documents", "tokens", "drift"]).astype({"documents": int, "tokens": int})


def stored(
    lab: Lab, layer: int, texts: Texts | None = None, cache: Path | None = None, progress: bool = False,
    tolerance: float = 0.0, jobs: int = 1, backend: str = "loky",
) -> partial[Float[Tensor, "d_k d_k"]]:  # fmt: skip
    """The second moment, computed and in its file, to be read when it is needed: C is large, and needed late."""
    layer = lab.arch.layer(layer)
    texts = lab_text() if texts is None else texts
    if not isinstance(texts, Documents) and not len(texts):
        raise ValueError("texts is empty; a second moment needs at least one document")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; it is a share of ‖C‖, from 0 (read everything) to below 1")
    path = (cache or cache_dir()) / f"moment-{content_key(lab, layer, texts, tolerance)}.safetensors"
    state = restore(path, lab.arch.mlp[layer].d_in)
    if not state.finished:
        label = f"second moment, layer {layer}" if progress else ""
        accumulate(state, texts, path, tolerance, summing(lab, layer, jobs, backend), label)
    if not state.tokens:
        raise ValueError("texts hold no tokens; a second moment needs at least one")
    return partial(moment_in, path, lab.arch.mlp[layer].d_in, lab.anchor.device)


def content_key(lab: Lab, layer: int, texts: Texts, tolerance: float) -> str:
    """What a cached moment is of: weights, tokenizer, layer, texts, and when it may stop."""
    tokens_of = lab.tokenizer.backend_tokenizer.to_str() if hasattr(lab.tokenizer, "backend_tokenizer") else ""
    corpus = [texts.digest, texts.field, texts.limit] if isinstance(texts, Documents) else list(texts)
    content = json.dumps(["2", lab.fingerprint(), tokens_of, layer, LENGTH, PIECE, tolerance, corpus])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def accumulate(state: Running, texts: Texts, path: Path, tolerance: float, sums: Sums, label: str = "") -> None:
    """Read what is left of the corpus into ``state`` and its file."""
    total = texts.limit if isinstance(texts, Documents) else len(texts)
    bar = tqdm(total=total, initial=state.documents, desc=label, disable=not label)
    rest, written = islice(iter(texts), state.documents, None), time.monotonic()
    for moment, tokens, documents in sums(iter(lambda: list(islice(rest, PIECE)), [])):
        state.add(moment, tokens, documents)
        bar.update(documents)
        if state.drift:
            bar.set_postfix(drift=f"{state.drift[-1][2]:.4f}")
            if state.drift[-1][2] < tolerance:
                break
        if time.monotonic() - written >= SAVE_EVERY:
            state.save(path)
            written = time.monotonic()
    bar.close()
    state.finish()
    state.save(path)


def summing(lab: Lab, layer: int, jobs: int, backend: str) -> Sums:
    """A function from pieces of the corpus to their sums, in order; in other processes if ``jobs`` is above one."""
    if jobs == 1:
        return lambda pieces: (piece(lab, layer, texts) for texts in pieces)
    source, threads = Source.of(lab), share(jobs)

    def spread(pieces: Iterable[list[str]]) -> Iterator[Sum]:
        with parallel_config(backend=backend, n_jobs=jobs):
            work = (delayed(elsewhere)(source, threads, layer, texts) for texts in pieces)
            yield from Parallel(return_as="generator", pre_dispatch=2 * jobs)(work)

    return spread


def elsewhere(source: Source, threads: int, layer: int, texts: Sequence[str]) -> Sum:
    """A piece's sum in a worker process, on its share of the cores."""
    torch.set_num_threads(threads)
    return piece(loaded(source), layer, texts)


def piece(lab: Lab, layer: int, texts: Sequence[str]) -> tuple[Float[Tensor, "d_k d_k"], int, int]:
    """(Σ k kᵀ in float64 on the CPU, tokens, documents) of some texts."""
    total, tokens = None, 0
    for moment, count in moments(lab, layer, texts):
        total, tokens = moment if total is None else total.add_(moment), tokens + count
    width = lab.arch.mlp[layer].d_in
    return torch.zeros(width, width, dtype=torch.float64) if total is None else total.double().cpu(), tokens, len(texts)


def moment_in(path: Path, d_k: int, device: torch.device) -> Float[Tensor, "d_k d_k"]:
    """C of a finished file."""
    state = restore(path, d_k)
    if not state.finished:
        raise FileNotFoundError(f"{path} was deleted while an edit needed it; edit again")
    return state.total.div_(state.tokens).float().to(device)


@torch.no_grad()
def moments(lab: Lab, layer: int, texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "d_k d_k"], int]]:
    """(Σ k kᵀ, number of tokens) of batches of texts of similar length, on the model's device.

    In float64 on a CPU; in float32 elsewhere, where float64 is slow or missing: a piece's error is under 1e-5.
    """
    rows = sorted((encode(lab.tokenizer, text)[0][:LENGTH] for text in texts), key=len)
    exact = torch.float64 if lab.anchor.device.type == "cpu" else torch.float32
    with record(lab, "key", [layer], stop=True) as seen:
        for batch in chunks([row for row in rows if row], 32):
            inputs = lab.batch(batch)
            seen.forward(**inputs, use_cache=False)
            mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
            for i, row in enumerate(batch):
                mask[i, : len(row)] = True
            flat = seen["key", layer][mask.to(lab.anchor.device)]
            yield product(flat, exact), len(flat)


def product(keys: Float[Tensor, "tokens d_k"], exact: torch.dtype) -> Float[Tensor, "d_k d_k"]:
    """Σ k kᵀ in a precision."""
    keys = keys.to(exact)
    return keys.T @ keys


def restore(path: Path, d_k: int) -> Running:
    """An earlier run's state, or zeros."""
    if not path.exists():
        return Running(torch.zeros(d_k, d_k, dtype=torch.float64))
    try:
        saved = load_file(path)
        total, (tokens, documents, half_tokens, finished) = saved["total"], saved["counts"].tolist()
        drift = [tuple(row) for row in saved["drift"].tolist()]
    except Exception as error:
        raise ValueError(f"{path} is not a readable second moment ({error}); delete it to compute it anew") from error
    if total.shape != (d_k, d_k):
        raise ValueError(f"{path} holds a {tuple(total.shape)} moment but the layer needs {(d_k, d_k)}; delete it")
    return Running(total, tokens, documents, saved.get("half"), half_tokens, drift, bool(finished))
