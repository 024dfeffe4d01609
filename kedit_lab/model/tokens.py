"""Text to token ids: where the subject ends in a prompt, and targets as ids appended to the prompt's ids."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kedit_lab.model.chat import Chat
from kedit_lab.types import SLOT, Fact, one_text

RULES = ("subject_last", "last")
AT_ONCE = 1000  # texts that the tokenizer is given in one call
Encoded = tuple[list[int], list[tuple[int, int]]]  # ids and character offsets
BYTE = re.compile("<0x([0-9A-F]{2})>")  # how a vocabulary writes a byte


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


def encoded(tokenizer: Any, texts: Sequence[str], chat: Chat | None = None) -> Iterator[Encoded]:
    """(ids, character offsets) of texts that will go on: with the tokenizer's special tokens in front, none behind.

    In a chat the ids are of the text inside the template, with the template's special tokens alone (so that a BOS it
    writes is not doubled); offsets still count from the text's start, and are negative in front of it.
    """
    must_be_fast(tokenizer)
    shift, special = 0 if chat is None else len(chat.before), set(tokenizer.all_special_ids)
    for start in range(0, len(texts), AT_ONCE):
        batch = [text if chat is None else chat.pose(text) for text in texts[start : start + AT_ONCE]]
        found = tokenizer(batch, return_offsets_mapping=True, add_special_tokens=chat is None)
        for text, ids, offsets in zip(batch, found["input_ids"], found["offset_mapping"], strict=True):
            while ids and ids[-1] in special and offsets[-1] == (0, 0):
                ids, offsets = ids[:-1], offsets[:-1]
            own = own_offsets(tokenizer, text, ids, offsets)
            yield ids, [(first - shift, stop - shift) for first, stop in own] if shift else own


def must_be_fast(tokenizer: Any) -> None:
    """Raise a ValueError for what is no tokenizer, or one that gives no character offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets; load a fast tokenizer (it has a tokenizer.json)"
        )


def asked_ids(tokenizer: Any, prompt: str, chat: Chat | None = None) -> list[int]:
    """The ids of a prompt that somebody asks; a ValueError where it is no text, or of no token."""
    ids, _ = encode(tokenizer, one_text("prompt", prompt).rstrip(), chat)
    if not ids:
        raise ValueError(f"prompt is {prompt!r}, of no token; ask something")
    return ids


def encode(tokenizer: Any, text: str, chat: Chat | None = None) -> Encoded:
    """(ids, character offsets) of one text that will go on."""
    return next(encoded(tokenizer, [text], chat))


def own_offsets(tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The offsets, tokens that share a span taken apart."""
    if all(one != other for one, other in pairwise(offsets)):
        return offsets
    runs = groupby(zip(ids, offsets, strict=True), key=itemgetter(1))
    return [own for span, run in runs for own in apart(tokenizer, text, span, [token for token, _ in run])]


def apart(tokenizer: Any, text: str, span: tuple[int, int], ids: Sequence[int]) -> list[tuple[int, int]]:
    """Offsets of tokens that share a span: a Unigram gives letters it does not know as a run of bytes, each with the
    offsets of the whole run; here each gets those of its own letter."""
    first, stop = span
    raw = [BYTE.fullmatch(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    if len(ids) == 1 or stop - first < 2 or None in raw:
        return [span] * len(ids)
    normal = tokenizer.backend_tokenizer.normalizer
    parts = [text[first:end] for end in range(first, stop + 1)]
    read = [(part if normal is None else normal.normalize_str(part)).encode() for part in parts]
    skip = read[-1].find(bytes(int(piece[1], 16) for piece in raw))  # at an edge a part of a letter may be known
    if skip < 0:
        return [span] * len(ids)
    ends = [next(i for i, part in enumerate(read) if len(part) > skip + byte) for byte in range(len(ids))]
    return [(first + end - 1, first + end) for end in ends]


def targets_ids(tokenizer: Any, targets: Iterable[str], chat: Chat | None = None) -> dict[str, tuple[int, ...]]:
    """By target, the ids of " target" as a continuation, without special tokens or a tokenizer's dummy first piece.

    In a chat it continues the template's text behind the prompt, with a space in front only where the template has one.
    """
    targets, texts = list(dict.fromkeys(targets)), []
    for target in targets:
        if not target.strip():
            raise ValueError(f"target {target!r} is empty; give the text that should follow the prompt")
        plain = target if target[0].isspace() else f" {target}"
        texts.append(plain if chat is None else chat.space + target.lstrip())
    before = "a" if chat is None else chat.after or "a"
    read = lambda some: tokenizer(some, add_special_tokens=False)["input_ids"]  # noqa: E731
    anchor, *joined = read([before, *(before + text for text in texts)])
    found = {}
    for target, text, whole in zip(targets, texts, joined, strict=True):
        ids = whole[len(anchor) :] if whole[: len(anchor)] == anchor else read(text)
        if not ids:
            raise ValueError(
                f"target {target!r} gives no tokens with {type(tokenizer).__name__}; choose another target"
            )
        found[target] = tuple(ids)
    return found


def target_ids(tokenizer: Any, target: str, chat: Chat | None = None) -> tuple[int, ...]:
    """The ids of one target, see ``targets_ids``."""
    return targets_ids(tokenizer, [target], chat)[target]


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


def fact_prompts(tokenizer: Any, facts: Sequence[Fact], prefixes: Sequence[str] = ("",), rule: str = "subject_last",
                 chat: Chat | None = None) -> list[tuple[tuple[int, ...], int]]:  # fmt: skip
    """(ids, position that the rule names) of every fact's prompt behind each prefix, fact by fact.

    The rule "last" names the token in front of the answer: in a chat that is the template's last.
    """
    asked = [(fact, prefix) for fact in facts for prefix in prefixes]
    texts, found = [prefix + fact.text for fact, prefix in asked], []
    one: dict[int, int] = {}  # equal ids are one object: rows are many, and kept long
    for (fact, prefix), (ids, offsets) in zip(asked, encoded(tokenizer, texts, chat), strict=True):
        at = lookup(offsets, len(prefix) + fact.prompt.index(SLOT), fact.subject, rule)
        found.append((tuple(one.setdefault(i, i) for i in ids), at))
    return found


def fact_rows(tokenizer: Any, facts: Sequence[Fact], prefixes: Sequence[str] = ("",), rule: str = "subject_last",
              chat: Chat | None = None) -> list[list[Row]]:  # fmt: skip
    """Per fact, its rows behind each prefix."""
    prompts = iter(fact_prompts(tokenizer, facts, prefixes, rule, chat))
    targets = targets_ids(tokenizer, (fact.target_new for fact in facts), chat)
    return [[Row(ids, targets[fact.target_new], at) for ids, at in islice(prompts, len(prefixes))] for fact in facts]


def answer_rows(tokenizer: Any, pairs: Sequence[tuple[str, str]], chat: Chat | None = None) -> list[Row]:
    """The rows of (prompt, answer) pairs; their lookup token is the one in front of the answer.

    Raises ValueError for a prompt or an answer without tokens.
    """
    texts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    prompts = {text: tuple(ids) for text, (ids, _) in zip(texts, encoded(tokenizer, texts, chat), strict=True)}
    for text, ids in prompts.items():
        if not ids:
            raise ValueError(f"prompt {text!r} gives no tokens with {type(tokenizer).__name__}; ask another one")
    answers = targets_ids(tokenizer, (answer for _, answer in pairs), chat)
    return [Row(prompts[prompt], answers[answer], len(prompts[prompt]) - 1) for prompt, answer in pairs]


def fact_row(tokenizer: Any, fact: Fact, prefix: str = "", rule: str = "subject_last", target: str | None = None,
             chat: Chat | None = None) -> Row:  # fmt: skip
    """The row of a fact behind one prefix; ``target`` is ``target_new`` unless given."""
    (ids, at), *_ = fact_prompts(tokenizer, [fact], [prefix], rule, chat)
    return Row(ids, target_ids(tokenizer, target or fact.target_new, chat), at)


def essence_rows(tokenizer: Any, subjects: Sequence[str], chat: Chat | None = None) -> list[Row]:
    """The rows "{subject} is a" on which the drift of unrelated predictions is measured (MEMIT's KL prompt)."""
    found = zip(subjects, encoded(tokenizer, [f"{subject} is a" for subject in subjects], chat), strict=True)
    return [Row(tuple(ids), (), lookup(offsets, 0, subject)) for subject, (ids, offsets) in found]


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


def by_length(lengths: Sequence[int], waste: int) -> list[list[int]]:
    """Indices of rows in bundles that hold at most ``waste`` tokens of padding, the shortest rows first."""
    bundles: list[list[int]] = []
    spent = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        spent += len(bundles[-1]) * (lengths[i] - lengths[bundles[-1][-1]]) if bundles else 0
        if not bundles or spent > waste:
            bundles.append([])
            spent = 0
        bundles[-1].append(i)
    return [sorted(bundle) for bundle in bundles]
