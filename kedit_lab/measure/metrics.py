"""How well an edit worked: one row per fact and prompt, and the field's metrics as means over rows.

| metric        | prompts       | a row counts as                                             | as in                  |
|---------------|---------------|-------------------------------------------------------------|------------------------|
| efficacy      | rewrite       | every target token is the arg-max, teacher-forced           | EAMET's Eff, no prefix |
| success       | rewrite       | P(target_new) > P(target_true), length-normalised           | CounterFact's ES       |
| paraphrase    | paraphrases   | as efficacy                                                 | EAMET's Gen            |
| specificity   | neighborhood  | as efficacy, with the neighbour's own answer                | EAMET's exact Spe      |
| preference    | neighborhood  | P(own answer) > P(target_new), length-normalised            | CounterFact's NS       |
| portability   | portability   | as efficacy, with the consequence as answer                 | EasyEdit, exact form   |
| locality      | locality      | as efficacy, with the probe's own answer                    | EAMET's Loc            |
| fluency       | generation    | H₂/3 + 2H₃/3, entropies (bits) of word bi- and trigrams     | CounterFact's GE       |
| score         | -             | harmonic mean of efficacy, paraphrase and specificity       | CounterFact's S        |

Of a lab with a chat, all prompts are asked in the chat template: reports then have a column ``chat`` and summaries an
entry ``chat``, and there is neither where prompts are completed as plain text.
"""

from collections import Counter
from collections.abc import Sequence
from math import log2
from reprlib import repr as short
from typing import Any

import pandas as pd
import torch

from kedit_lab.model.answers import answered
from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import Row
from kedit_lab.types import Fact, several

KINDS = ("rewrite", "paraphrase", "neighborhood", "portability", "locality", "generation")
SCORED = ("efficacy", "paraphrase", "specificity")


class Report(pd.DataFrame):
    """A tidy table, one row per fact x prompt, that also knows its summary."""

    @property
    def _constructor(self) -> type["Report"]:
        return Report

    def summary(self) -> pd.Series:
        """The metrics of this module's table; ``*_before`` where a baseline was given.

        NaN where nothing was asked, but ``locality`` is there only for facts with locality probes (published sets), and
        ``chat`` (1) only where prompts were asked in a chat template.
        """
        names = {"": ""} | ({"_before": "_before"} if "exact_before" in self else {})
        parts = [summarise(self, suffix).add_suffix(suffix) for suffix in names]
        return pd.concat([*parts, *([pd.Series({"chat": 1.0})] if "chat" in self else [])])


def known_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds of prompts, at least one; others than those there are raise a ValueError."""
    kinds = several("kinds", kinds, str)
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        seen = f"unknown kinds {sorted(unknown)}" if unknown else "kinds is empty"
        raise ValueError(f"{seen}; the kinds are {', '.join(KINDS)}")
    return kinds


def evaluate(lab: Lab, facts: Sequence[Fact], baseline: Report | None = None, kinds: Sequence[str] = KINDS,
             prefix: str = "", tokens: int = 40, aliases: bool = False) -> Report:  # fmt: skip
    """Ask the model, as it stands, all prompts of the facts.

    Columns: ``fact`` (index), ``subject``, ``relation``, ``kind``, ``prompt``, ``answer``, ``exact`` (each answer token
    is the arg-max), ``accuracy`` (share of answer tokens that are), ``nll`` (mean per answer token), ``rival`` and
    ``rival_nll`` (target_true for the edit's own prompts, target_new for neighbours), ``wins`` (nll < rival_nll), and
    ``fluency`` for rows of kind "generation" (greedy, ``tokens`` new tokens, text in ``answer``). With a ``baseline``
    (an earlier report on the same facts) the columns ``exact_before``, ``wins_before`` ... stand beside.

    With ``aliases`` a row is exact if any known spelling of its answer is (EAMET's rule for portability and locality).
    Raises ValueError without facts or prompts of the kinds, for unknown kinds, and for a baseline that is no report, is
    of other prompts, or was not asked alike.
    """
    if not (baseline is None or (isinstance(baseline, pd.DataFrame) and "prompt" in baseline)):
        raise ValueError(f"baseline is {short(baseline)}; give what evaluate returned before the edit")
    kinds, facts = known_kinds(kinds), several("facts", facts, Fact)
    if not facts:
        raise ValueError("facts is empty; there is nothing to evaluate")
    asked = [row for i, fact in enumerate(facts) for row in questions(i, fact, prefix) if row["kind"] in kinds]
    spellings = [row.pop("aliases") for row in asked]
    free = [row for i, fact in enumerate(facts) for row in generations(i, fact)] if "generation" in kinds else []
    if not asked and not free:
        raise ValueError(f"the facts have no prompts of the kinds {', '.join(kinds)}; ask for others, such as rewrite")
    report = Report(asked + free)
    text = report["kind"] != "generation"
    have = {answer: text & report[answer].notna() for answer in ("answer", "rival")}
    pairs = [pair for answer, rows in have.items() for pair in report.loc[rows, ["prompt", answer]].itertuples(False)]
    scores, own = score(lab, pairs), int(have["answer"].sum())
    for column in scores:
        report.loc[have["answer"], column] = scores[column].to_numpy(dtype=float)[:own]
    report.loc[have["rival"], "rival_nll"] = scores["nll"].to_numpy(dtype=float)[own:]
    if aliases:
        accept(lab, report, spellings)
    both = report["rival_nll"].notna()
    report.loc[both, "wins"] = (report.loc[both, "nll"] < report.loc[both, "rival_nll"]).astype(float)
    if not text.all():
        report.loc[~text, "answer"] = lab.generate(list(report.loc[~text, "prompt"]), tokens)
        report.loc[~text, "fluency"] = [ngram_entropy(t) for t in report.loc[~text, "answer"]]
    if lab.chat is not None:
        report["chat"] = True
    if baseline is not None:
        if ("chat" in baseline) != ("chat" in report):
            raise ValueError(
                "one of the baseline and this report is asked in a chat template, the other is not; ask both alike"
            )
        if asked_of(baseline) != asked_of(report):
            raise ValueError("the baseline is of other facts, answers or kinds; evaluate the same ones before the edit")
        for column in ("exact", "accuracy", "nll", "rival_nll", "wins", "fluency"):
            if column in baseline and column in report:
                report[f"{column}_before"] = baseline[column].to_numpy()
    return report


def asked_of(report: pd.DataFrame) -> list[tuple[str, ...]]:
    """Kind, prompt, answer and rival of every row; of free text, whose answer is the model's, kind and prompt."""
    rows = report.reindex(columns=["kind", "prompt", "answer", "rival"]).fillna("").itertuples(index=False, name=None)
    return [row[:2] if row[0] == "generation" else row for row in rows]


def questions(index: int, fact: Fact, prefix: str) -> list[dict[str, Any]]:
    """All prompts of a fact with their answers and rivals; a space behind a prompt is the answer's, as in ``Fact``."""
    base = {"fact": index, "subject": fact.subject, "relation": fact.relation}
    own = {"answer": fact.target_new, "rival": fact.target_true, "aliases": fact.aliases}
    rows = [base | {"kind": "rewrite", "prompt": prefix + fact.text} | own]
    rows += [base | {"kind": "paraphrase", "prompt": prefix + text.rstrip()} | own for text in fact.paraphrases]
    for kind, probes, rival in (
        ("neighborhood", fact.neighborhood, fact.target_new),
        ("portability", fact.portability, None),
        ("locality", fact.locality, None),
    ):
        rows += [
            base
            | {
                "kind": kind,
                "prompt": prefix + probe.prompt.rstrip(),
                "answer": probe.answer,
                "rival": rival,
                "aliases": probe.aliases,
            }
            for probe in probes
        ]
    return rows


def generations(index: int, fact: Fact) -> list[dict[str, Any]]:
    """The rows that ask for free text: behind the fact's generation prompts, or behind the subject if it has none."""
    base = {"fact": index, "subject": fact.subject, "relation": fact.relation, "kind": "generation"}
    prompts = fact.generation or (fact.subject,)
    return [base | {"prompt": prompt, "answer": None, "rival": None} for prompt in prompts]


def accept(lab: Lab, report: Report, spellings: Sequence[Sequence[str]]) -> None:
    """Mark the rows of a report exact in which another spelling of the answer is; rows i < len(spellings) have them."""
    spots = [(i, alias) for i, row in enumerate(spellings) for alias in row]
    scores = score(lab, [(report.at[i, "prompt"], alias) for i, alias in spots])
    for (i, _), exact in zip(spots, scores["exact"], strict=True):
        report.at[i, "exact"] = max(report.at[i, "exact"], exact)


@torch.no_grad()
def score(lab: Lab, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """For (prompt, answer) pairs: ``nll`` (mean per answer token), ``exact``, ``accuracy``, teacher-forced.

    Raises ValueError for a prompt or an answer without tokens.
    """
    rows = lab.answer_rows(pairs)
    out: dict[Row, tuple[float, float, float]] = {}
    for batch, states in answered(lab, list(dict.fromkeys(rows))):
        logp = lab.arch.logits(states).float().log_softmax(-1)
        token = torch.tensor([token for row in batch for token in row.target], device=logp.device)
        said = logp.gather(1, token[:, None])[:, 0]
        right = logp.argmax(-1) == token
        start = 0
        for row in batch:
            span = slice(start, start + len(row.target))
            hits = right[span].float()
            out[row] = (-float(said[span].mean()), float(hits.min()), float(hits.mean()))
            start = span.stop
    return pd.DataFrame([out[row] for row in rows], columns=["nll", "exact", "accuracy"])


def summarise(report: pd.DataFrame, suffix: str = "") -> pd.Series:
    """The metrics as means over rows; prompts of a fact count equally, then facts count equally."""

    def mean(kind: str, column: str) -> float:
        rows = report[report["kind"] == kind]
        if column + suffix not in report or rows.empty:
            return float("nan")
        return float(rows.groupby("fact")[column + suffix].mean().mean())

    found = {
        "efficacy": mean("rewrite", "exact"),
        "success": mean("rewrite", "wins"),
        "paraphrase": mean("paraphrase", "exact"),
        "specificity": mean("neighborhood", "exact"),
        "preference": mean("neighborhood", "wins"),
        "portability": mean("portability", "exact"),
        "fluency": mean("generation", "fluency"),
    }
    if (report["kind"] == "locality").any():
        found["locality"] = mean("locality", "exact")
    return pd.Series(found | {"score": harmonic_mean([found[name] for name in SCORED])})


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; zero if any value is zero, NaN if any is missing."""
    if any(v != v for v in values):
        return float("nan")
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)


def ngram_entropy(text: str) -> float:
    """H₂/3 + 2H₃/3 of the words of a text, H_n the entropy in bits of its n-gram frequencies."""
    words = text.split()
    return entropy(words, 2) / 3 + 2 * entropy(words, 3) / 3


def entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of the n-grams of a word list."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(c / total * log2(c / total) for c in counts.values()) + 0.0
