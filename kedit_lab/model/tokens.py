"""Text to token ids: where the subject ends in a prompt, and targets as ids appended to the prompt's ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kedit_lab.model.chat import Chat
from kedit_lab.types import SLOT, Fact

RULES = ("subject_last", "last")


@dataclass(frozen=True)
class Row:
    """One token row: a prompt's ids, the ids of what should follow, and the position where the subject ends."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    lookup: int

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads when the target is teacher-forced: all but the target's last token."""
        return self.prompt + self.target[:-1]

    @property
    def answers(self) -> range:
        """Positions in ``ids`` whose next token is a target token."""
        return range(len(self.prompt) - 1, len(self.ids))


def encode(tokenizer: Any, text: str, chat: Chat | None = None) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, character offsets) of a text that will go on: with the tokenizer's special tokens in front, none behind.

    In a chat the ids are of the text inside the template, with the template's special tokens alone (so that a BOS it
    writes is not doubled); offsets still count from the text's start, and are negative in front of it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; load a fast tokenizer (it has a tokenizer.json)"
        )
    posed, shift = (text, 0) if chat is None else (chat.pose(text), len(chat.before))
    encoded = tokenizer(posed, return_offsets_mapping=True, add_special_tokens=chat is None)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    while ids and ids[-1] in tokenizer.all_special_ids and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]
    return ids, [(first - shift, stop - shift) for first, stop in offsets] if shift else offsets


def target_ids(tokenizer: Any, target: str, chat: Chat | None = None) -> tuple[int, ...]:
    """Ids of " target" as a continuation, without special tokens and without a tokenizer's dummy first piece.

    In a chat it continues the template's text behind the prompt, with a space in front only where the template has one.
    """
    if not target.strip():
        raise ValueError(f"target {target!r} is empty; give the text that should follow the prompt")
    before, text = "a", target if target[0].isspace() else f" {target}"
    if chat is not None:
        before, text = chat.after or before, chat.space + target.lstrip()
    plain = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]  # noqa: E731
    anchor, joined = plain(before), plain(before + text)
    ids = joined[len(anchor) :] if joined[: len(anchor)] == anchor else plain(text)
    if not ids:
        raise ValueError(f"target {target!r} gives no tokens with {type(tokenizer).__name__}; choose another target")
    return tuple(ids)


def last_token(offsets: Sequence[tuple[int, int]], end: int, start: int = 0) -> int:
    """Index of the last token that starts before character ``end`` (tokens of zero width are special ones).

    Raises ValueError where the text from ``start`` on has no token: some tokenizers leave characters out.
    """
    found = [i for i, (first, stop) in enumerate(offsets) if first < end and stop > max(first, start)]
    if not found:
        raise ValueError(
            f"the tokenizer has no token for the characters from {start} to {end} of this text; "
            "write the subject or the prompt in letters that it knows"
        )
    return found[-1]


def lookup(offsets: Sequence[tuple[int, int]], start: int, subject: str, rule: str = "subject_last") -> int:
    """The position that a rule names: the last token of the subject at character ``start``, or of the prompt.

    Raises ValueError where the tokenizer leaves nothing of the subject or the prompt.
    """
    if rule not in RULES:
        raise ValueError(f"unknown token rule {rule!r}; the rules are {', '.join(RULES)}")
    if rule == "last":
        return last_token(offsets, offsets[-1][1] if offsets else 0)
    return last_token(offsets, start + len(subject.rstrip()), start)


def fact_row(tokenizer: Any, fact: Fact, prefix: str = "", rule: str = "subject_last", target: str | None = None,
             chat: Chat | None = None) -> Row:  # fmt: skip
    """The row of a fact behind a prefix, in a chat if there is one; ``target`` is ``target_new`` unless given.

    The rule "last" names the token in front of the answer: in a chat that is the template's last.
    """
    ids, offsets = encode(tokenizer, prefix + fact.text, chat)
    at = lookup(offsets, len(prefix) + fact.prompt.index(SLOT), fact.subject, rule)
    return Row(tuple(ids), target_ids(tokenizer, target or fact.target_new, chat), at)


def essence_row(tokenizer: Any, subject: str, chat: Chat | None = None) -> Row:
    """The row "{subject} is a" on which the drift of unrelated predictions is measured (MEMIT's KL prompt)."""
    ids, offsets = encode(tokenizer, f"{subject} is a", chat)
    return Row(tuple(ids), (), lookup(offsets, 0, subject))


def pad(rows: Sequence[Sequence[int]], anchor: Tensor, left: bool = False) -> dict[str, Int[Tensor, "rows length"]]:
    """``input_ids``, ``attention_mask`` and ``position_ids`` of rows of different lengths, on the anchor's device.

    Padding repeats each row's own last (or first) token, so no special token has to exist; it is masked out.
    """
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i] = row[0 if left else -1] if row else 0
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(anchor.device) for name, tensor in batch.items()}


def self_test(tokenizer: Any, chat: Chat | None = None) -> list[str]:
    """What is odd about a tokenizer for editing: an empty list, or one sentence for each finding."""
    findings = []
    for subject in ("John Smith", "Zoë Núñez", "李小龍"):
        fact = Fact(subject, "The employer of {} is", "Greek")
        row = fact_row(tokenizer, fact, chat=chat)
        text = tokenizer.decode(row.prompt[: row.lookup + 1], skip_special_tokens=True)
        if not text.endswith(subject):
            findings.append(f"the lookup token of {subject!r} decodes to {text!r}")
        text = tokenizer.decode(row.prompt + row.target, skip_special_tokens=True)
        whole = text.endswith("Greek") and fact.text in text if chat else text.endswith(f"{fact.text} Greek")
        if not whole:
            findings.append(f"prompt and target of {subject!r} decode to {text!r}")
    return findings
