"""SeqMMR's router: does a prompt ask about something that was edited? Nearest prompts vote, in closed form.

A corpus holds prompts of edited facts (label +1) and unrelated ones (-1). With β_j = exp(1 + cos(q, ε_j)) over the k
nearest, the minimiser of Σ β_j BCE(s, l_j) has the sign of Σ β_j l_j; at zero or above the edited model answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from kedit_lab.model.hooks import record
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.tokens import encode

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Decision:
    """Where a prompt goes: ``edited`` or not, the logit ``score`` (infinite if unanimous), and the ``votes``."""

    edited: bool
    score: float
    votes: pd.DataFrame

    def __str__(self) -> str:
        nearest = "; ".join(f"{row.prompt!r} ({row.cosine:.2f})" for row in self.votes.itertuples())
        return f"{'edited' if self.edited else 'unedited'} model: nearest prompts are {nearest}"


@dataclass(frozen=True)
class Router:
    """A corpus of embedded prompts with labels, and how many of the nearest vote."""

    prompts: tuple[str, ...]
    labels: np.ndarray
    rows: np.ndarray
    embed: Embed
    k: int

    @classmethod
    def of(cls, edited: Sequence[str], unrelated: Sequence[str], embed: Embed | None = None, k: int = 2) -> "Router":
        """A router over prompts of edited facts and unrelated ones; TF-IDF of letters unless ``embed`` is given.

        ``embed`` maps texts to rows (any scale). Raises ValueError without edited prompts or for k under one.
        """
        if not edited:
            raise ValueError("no edited prompts given; a router needs at least one")
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; at least one prompt must vote")
        prompts = (*edited, *unrelated)
        embed = embed or tfidf(prompts)
        labels = np.array([1.0] * len(edited) + [-1.0] * len(unrelated))
        return cls(prompts, labels, units(embed(prompts)), embed, k)

    def cosines(self, texts: Sequence[str]) -> np.ndarray:
        """Cosine of every text with every prompt of the corpus."""
        return units(self.embed(texts)) @ self.rows.T

    def decide(self, texts: Sequence[str]) -> np.ndarray:
        """Whether each text goes to the edited model."""
        return np.array([score >= 0 for score, _ in map(self.vote, self.cosines(texts))], dtype=bool)

    def route(self, text: str) -> Decision:
        """Where one text goes, and why."""
        cosine = self.cosines([text])[0]
        score, near = self.vote(cosine)
        votes = pd.DataFrame({"prompt": [self.prompts[i] for i in near], "label": self.labels[near].astype(int),
                              "cosine": cosine[near], "beta": np.exp(1 + cosine[near])})  # fmt: skip
        return Decision(score >= 0, score, votes)

    def vote(self, cosine: np.ndarray) -> tuple[float, np.ndarray]:
        """(logit of the edited share of β among the k nearest, their indices, nearest first; edited first in ties)."""
        near = np.lexsort((-self.labels, -cosine))[: self.k]
        beta = np.exp(1 + cosine[near])
        yes, no = beta[self.labels[near] > 0].sum(), beta[self.labels[near] < 0].sum()
        with np.errstate(divide="ignore"):
            return float(np.log(yes) - np.log(no)), near


def units(rows: np.ndarray) -> np.ndarray:
    """Rows of length one (zero rows stay zero), rounded so that equal texts give equal cosines."""
    rows = np.asarray(rows, dtype=np.float64)
    return np.round(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), 12)


def tfidf(corpus: Sequence[str]) -> Embed:
    """An embedder that needs no model: TF-IDF of letter n-grams inside words, fitted on the corpus."""
    fitted = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(corpus)
    return lambda texts: fitted.transform(texts).toarray()


def hidden_states(lab: Lab, layer: int | None = None) -> Embed:
    """An embedder that reads the model itself: mean hidden state behind a block (the middle one). Build it unedited."""
    at = lab.arch.layers // 2 if layer is None else lab.arch.layer(layer)

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> np.ndarray:
        rows: list[Any] = []
        for batch in chunks([encode(lab.tokenizer, text)[0] for text in texts], 64):
            inputs = lab.batch(batch)
            with record(lab, "block", [at], stop=True) as seen:
                seen.forward(**inputs, use_cache=False)
            mask = inputs["attention_mask"][..., None].to(seen["block", at])
            rows.append(((seen["block", at] * mask).sum(1) / mask.sum(1)).double().cpu().numpy())
        return np.concatenate(rows)

    return embed
