"""Where a subject ends, and what follows a prompt, in tokens: checked by decoding and against the whole text's ids."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.model import tokens
from kedit_lab.model.tokens import (
    Row,
    by_length,
    encode,
    essence_rows,
    fact_row,
    fact_rows,
    lookup,
    pad,
    self_test,
    target_ids,
)
from kedit_lab.types import Fact
from tests.pico.tiny import byte_level, sentence_piece, unigram

TOKENIZERS = {"byte level": byte_level(), "sentencepiece": sentence_piece(), "closing": sentence_piece(end=True)}
PREFIXES = ("", "Therefore I think so. ", "John Smith and Zoë: 🙂 (C++). ")
SUBJECTS = ("John Smith", "Zoë Núñez", "李小龍", "🙂", "José 🙂", "C++ (a.k.a. c.*)", "A^B$|[x]", r"\d+\1", "Q", "x's")
PROMPTS = (
    "{} works in",  # first
    "The employer of {} is",  # in the middle
    "The capital of France knows {}",  # last
    "{}'s native language is",  # possessive
    "The city of '{}', in Europe, is",  # quoted
    "({})",  # bracketed
)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def assert_ends_at_subject(tokenizer, row, before, subject):
    """Up to the lookup token stands the subject's last character, and one token earlier it does not yet."""
    text = decoded(tokenizer, row.prompt[: row.lookup + 1])
    assert text.startswith(before + subject)
    assert not text.removeprefix(before + subject).strip("'s,)")  # a piece may reach beyond the subject
    assert not decoded(tokenizer, row.prompt[: row.lookup]).startswith(before + subject)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_lookup_by_decoding(tokenizer, subject, prompt, prefix):
    fact = Fact(subject, prompt, "Greek")
    row = fact_row(tokenizer, fact, prefix)
    assert decoded(tokenizer, row.prompt) == prefix + fact.text
    assert_ends_at_subject(tokenizer, row, prefix + prompt.split("{}")[0], subject)


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        ("John", "John knows {}, and John works in"),
        ("John", "{} knows John, and John works in"),
        ("is", "This is what is known: {} is"),
        ("a", "a a {} a a"),
    ],
)
def test_subject_repeated_elsewhere(tokenizer, subject, prompt):
    """The slot counts, not the first or the last mention; a subject in the prefix does not either."""
    for prefix in ("", f"{subject} and {subject}. "):
        row = fact_row(tokenizer, Fact(subject, prompt, "Greek"), prefix)
        assert_ends_at_subject(tokenizer, row, prefix + prompt.split("{}")[0], subject)


def test_exact_positions():
    """Spelled out once: ▁The ▁employer ▁of ▁John ▁Smith ▁is, behind a BOS where there is one."""
    fact = Fact("John Smith", "The employer of {} is", "Greek")
    for name, shift in (("byte level", 0), ("sentencepiece", 1), ("closing", 1)):
        tokenizer = TOKENIZERS[name]
        row = fact_row(tokenizer, fact)
        pieces = [piece.strip("Ġ▁") for piece in tokenizer.convert_ids_to_tokens(list(row.prompt))]
        at = {"".join(pieces[shift : i + 1]): i for i in range(shift, len(pieces))}
        assert row.lookup == at["TheemployerofJohnSmith"]
        assert fact_row(tokenizer, fact, rule="last").lookup == at["TheemployerofJohnSmithis"] == len(row.prompt) - 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_last_rule_is_the_last_token(tokenizer, prompt):
    for prefix in PREFIXES:
        row = fact_row(tokenizer, Fact("Zoë Núñez", prompt, "Greek"), prefix, rule="last")
        assert row.lookup == len(row.prompt) - 1


def test_special_tokens_in_front_only(tokenizer):
    """A BOS belongs to the prompt; an end token would cut the target off from it."""
    ids, offsets = encode(tokenizer, "I think so.")
    assert (ids[0] == tokenizer.bos_token_id) is (tokenizer.bos_token is not None)
    assert ids[-1] != tokenizer.eos_token_id
    assert offsets[-1][1] == len("I think so.")
    assert len(ids) == len(offsets)


@pytest.mark.parametrize(
    "target", ["Greek", " Greek", "Paris", "London in Europe", "Zoë", "李小龍", "🙂", "1980", "C++"]
)
@pytest.mark.parametrize("subject", ["John Smith", "李小龍"])
def test_target_continues_the_whole_text(tokenizer, subject, target):
    """Where the tokenizer is prefix-stable, as both are here, prompt and target are the ids of the whole text."""
    fact = Fact(subject, "The employer of {} is", target)
    row = fact_row(tokenizer, fact)
    whole, _ = encode(tokenizer, f"{fact.text} {target.strip()}")
    assert list(row.prompt + row.target) == whole
    assert decoded(tokenizer, row.prompt + row.target) == f"{fact.text} {target.strip()}"
    assert not set(row.target) & set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(row.target))
    assert "".join(pieces).count("▁") == (target.strip().count(" ") + 1 if tokenizer.bos_token else 0)
    assert target_ids(tokenizer, target) == row.target


def test_no_dummy_piece():
    assert TOKENIZERS["sentencepiece"].convert_ids_to_tokens(
        list(target_ids(TOKENIZERS["sentencepiece"], "Greek"))
    ) == ["▁Greek"]
    assert TOKENIZERS["byte level"].convert_ids_to_tokens(list(target_ids(TOKENIZERS["byte level"], "Greek"))) == [
        "ĠGreek"
    ]


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("a李小", [(0, 1), (0, 1), *3 * [(1, 2)], *3 * [(2, 3)]]),
        ("aQe\u0301Q", [(0, 1), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),  # two letters that are read as one
        ("aQ\U0001f190", [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3)]),  # one that is read as "DJ", and "J" is known
    ],
)
def test_unknown_letters_in_a_row(text, own):
    """A Unigram tells of a run of them only where it is as a whole."""
    tokenizer = unigram()
    assert tokenizer(text, return_offsets_mapping=True)["offset_mapping"][:-1] != own
    assert encode(tokenizer, text)[1] == own


def test_other_target(tokenizer):
    fact = Fact("John Smith", "The employer of {} is", "Greek", target_true="Paris")
    assert fact_row(tokenizer, fact, target="Paris").target == target_ids(tokenizer, "Paris")
    assert fact_row(tokenizer, fact).target == target_ids(tokenizer, "Greek")


def test_row():
    row = Row((5, 6, 7), (8, 9, 10), 1)
    assert row.ids == (5, 6, 7, 8, 9)
    assert list(row.answers) == [2, 3, 4]
    assert (*row.ids, row.target[-1])[row.answers[0] + 1 :] == row.target
    assert Row((5, 6), (7,), 0).ids == (5, 6)
    assert Row((5, 6), (), 1).ids == (5, 6)


def test_essence_row(tokenizer):
    (row,) = essence_rows(tokenizer, ["Zoë Núñez"])
    assert decoded(tokenizer, row.ids) == "Zoë Núñez is a"
    assert_ends_at_subject(tokenizer, row, "", "Zoë Núñez")
    assert row.target == ()


def test_rows_of_many_are_rows_of_each(tokenizer, monkeypatch):
    """However many texts the tokenizer is given in one call."""
    facts = [Fact("John Smith", "{}'s employer is", "Greek"), Fact("Zoë Núñez", "I saw {} in", "Paris")]
    prefixes = ("", "You know. ", "Therefore. ")
    expected = [[fact_row(tokenizer, fact, prefix) for prefix in prefixes] for fact in facts]
    for together in (1, 4, 1000):
        monkeypatch.setattr(tokens, "AT_ONCE", together)
        assert fact_rows(tokenizer, facts, prefixes) == expected


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 20))
def test_bundles_hold_all_rows_with_little_padding(lengths, waste):
    bundles = by_length(lengths, waste)
    order = [i for bundle in bundles for i in bundle]
    assert sorted(order) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in bundle) for bundle in bundles]
    for bundle, most, least in zip(bundles, longest, [0, *longest], strict=False):
        assert bundle == sorted(bundle)
        assert min(lengths[i] for i in bundle) >= least
        assert sum(most - lengths[i] for i in bundle) <= waste


@pytest.mark.parametrize("left", [False, True])
def test_pad(left):
    rows = [(5, 6, 7), (8,), ()]
    batch = pad(rows, torch.empty(0), left)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if left else [1, 0, 0], [0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 0]]
    kept = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert kept == [list(row) for row in rows]


def test_pad_repeats_the_rows_own_edge():
    assert pad([(1, 2), (3, 4, 5)], torch.empty(0))["input_ids"].tolist() == [[1, 2, 2], [3, 4, 5]]
    assert pad([(1, 2), (3, 4, 5)], torch.empty(0), left=True)["input_ids"].tolist() == [[1, 1, 2], [3, 4, 5]]


def test_empty_target(tokenizer):
    for target in ("", " ", "\n"):
        with pytest.raises(ValueError, match="is empty; give the text that should follow the prompt"):
            target_ids(tokenizer, target)


def test_slow_tokenizer():
    class SlowTokenizer:
        is_fast = False

    for broken in (SlowTokenizer(), SimpleNamespace()):
        with pytest.raises(
            ValueError, match=f"{type(broken).__name__} gives no character offsets; load a fast tokenizer"
        ):
            encode(broken, "text")


def test_unknown_rule(tokenizer):
    fact = Fact("John", "{} works in", "Greek")
    with pytest.raises(ValueError, match="unknown token rule 'first'; the rules are subject_last, last"):
        fact_row(tokenizer, fact, rule="first")
    with pytest.raises(ValueError, match="unknown token rule 'subject_first'"):
        lookup([(0, 4)], 0, "John", "subject_first")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_self_test_of_good_tokenizers(name):
    assert self_test(TOKENIZERS[name]) == []


def test_self_test_of_a_broken_tokenizer():
    findings = self_test(byte_level(lower=True))
    assert len(findings) == 5  # two per subject with capitals, and the prompt's own capital for the third
    assert findings[0] == "the lookup token of 'John Smith' decodes to 'the employer of john smith'"
    assert findings[1] == "prompt and target of 'John Smith' decode to 'the employer of john smith is greek'"


GOOD = {"subject": "John Smith", "prompt": "The employer of {} is", "target_new": "Greek"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": "The employer of John Smith is"},
            r"has 0 slots, not one; put '\{\}' where the subject 'John Smith'",
        ),
        ({"prompt": "{} knows {} is"}, r"has 2 slots, not one; keep one '\{\}'"),
        ({"prompt": " "}, "prompt is ' '; a fact needs a non-empty text there"),
        ({"subject": ""}, "subject is ''; a fact needs a non-empty text there"),
        ({"target_new": ""}, "target_new is ''; a fact needs a non-empty text there"),
        ({"target_new": " \n"}, "target_new is .* a fact needs a non-empty text there"),
        (
            {"target_true": " Greek"},
            r"what the model should say already \(target_true\) for 'The employer of John Smith is'",
        ),
        (
            {"prompt": "The employer of {} is Greek"},
            "already ends in its target_new 'Greek'; end the prompt just before",
        ),
        ({"prompt": "The employer of {} is Greek "}, "already ends in its target_new 'Greek'"),
    ],
)
def test_impossible_facts(change, message):
    Fact(**GOOD)
    with pytest.raises(ValueError, match=message):
        Fact(**GOOD | change)


def test_fact_text():
    fact = Fact("John Smith", "The employer of {} is ", "Greek", target_true="Paris")
    assert fact.text == "The employer of John Smith is"
    assert fact.with_target("London").target_new == "London"
    with pytest.raises(ValueError, match="target_true"):
        fact.with_target("Paris")
    assert Fact("New Mexico", "The capital of {}", "Mexico").text == "The capital of New Mexico"
    assert Fact("a{}b", "{} is", "x").text == "a{}b is"
    assert Fact("Greece", "{} was found by Art", "art").target_new == "art"
    assert Fact("Greece", "{} lies in the smart", "art").text == "Greece lies in the smart"  # a part of a word
