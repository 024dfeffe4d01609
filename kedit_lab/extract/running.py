"""The sum of a second moment while it grows, and its file: written whole, sealed, refused when it is another's."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.paths import clear, room, whole

PIECE = 128  # documents that are summed before the next look at the drift and the clock
SAVE_EVERY = 60.0  # seconds between two writes of an unfinished moment
LEFT = 3600.0  # seconds after which a half-written file was left by a run that was killed
Sum = tuple[Tensor, int, int]  # Σ k kᵀ, tokens, documents
Sums = Callable[[Iterable[list[str]]], Iterator[Sum]]


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
        """Write all of it, sealed; raises an OSError if that cannot be done, and the file stays as it was."""
        counts = torch.tensor([self.tokens, self.documents, self.half_tokens, int(self.finished)])
        tensors = {"total": self.total, "counts": counts, "drift": torch.tensor(self.drift, dtype=torch.float64)}
        tensors |= {} if self.half is None else {"half": self.half}
        try:
            with whole(path) as temporary:
                save_file(tensors, temporary, {"of": path.stem, "sha256": seal(tensors)})
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{path} could not be written ({error}); what was written before is kept, so make room and start again"
            ) from error


def seal(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors, their names and their shapes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name}{tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy())
    return sha.hexdigest()


def restore(path: Path, d_k: int) -> Running:
    """An earlier run's state, or zeros. Raises ValueError for a damaged file, or one that was written for another."""
    if not path.exists():
        return Running(torch.zeros(d_k, d_k, dtype=torch.float64))
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        total, (tokens, documents, half_tokens, finished) = saved["total"], saved["counts"].tolist()
        drift = [tuple(row) for row in saved["drift"].tolist()]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable second moment ({error}); delete it to compute it anew") from error
    if total.shape != (d_k, d_k):
        raise ValueError(f"{path} holds a {tuple(total.shape)} moment but the layer needs {(d_k, d_k)}; delete it")
    if told.get("of") != path.stem:
        raise ValueError(f"{path} was written as {told.get('of')}, for other weights or texts; delete it")
    if told.get("sha256") != seal(saved):
        raise ValueError(f"{path} is damaged: its numbers are not those that were written; delete it")
    return Running(total, tokens, documents, saved.get("half"), half_tokens, drift, bool(finished))


def accumulate(state: Running, texts: Iterable[str], sums: Sums, path: Path, tolerance: float, bar: tqdm) -> None:
    """Read what is left of the corpus into ``state`` and its file, which is written every minute and at the end.

    Raises ValueError before anything is read where the file cannot be written or has no room, and for keys that are
    NaN or infinite.
    """
    room(path.parent, 4 * 8 * state.total.numel())  # the sum and its half, in the old file and in the new one
    clear(path, LEFT)
    rest, written = islice(iter(texts), state.documents, None), time.monotonic()
    with bar:
        for moment, tokens, documents in sums(iter(lambda: list(islice(rest, PIECE)), [])):
            if not moment.isfinite().all():
                raise ValueError(
                    f"keys of documents {state.documents + 1} to {state.documents + documents} are NaN or infinite: "
                    "their dtype is too narrow, or a weight is damaged; load the model in bfloat16 or float32, or anew"
                )
            state.add(moment, tokens, documents)
            bar.update(documents)
            if state.drift:
                bar.set_postfix(drift=f"{state.drift[-1][2]:.4f}")
                if state.drift[-1][2] < tolerance:
                    break
            if time.monotonic() - written >= SAVE_EVERY:
                state.save(path)
                written = time.monotonic()
    state.finish()
    state.save(path)
