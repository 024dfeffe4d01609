"""Random records and prompts: a reader or a tokenizer's lookup gives a right answer or an error that says what to do.

10,000 prompts, a quarter of them through each of four tokenizers, and 10,000 records in 1,000 files, every one of them
in each run. Hypothesis draws seeds; the texts come from ``random``, which is ten times faster.
"""

import gzip
import json
import random
import re
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_lab import facts as kf
from kedit_lab.extract.documents import documents
from kedit_lab.model.tokens import encode, fact_row, lookup
from kedit_lab.types import Fact
from tests.pico.tiny import byte_level, sentence_piece, unigram, word_piece

EXAMPLES, PROMPTS = 100, 25  # of each tokenizer
FILES, RECORDS = 1000, 10
UNWRITTEN = ("Cs", "Cn", "Co")  # half characters, and what no alphabet has (yet)
CHARACTERS = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c) not in UNWRITTEN]
CHARACTERS = [c for c in CHARACTERS if c not in "{}\ufffd"]
ASCII = CHARACTERS[:125]
TOKENIZERS = {
    "byte level": byte_level(),
    "sentencepiece": sentence_piece(),
    "unigram": unigram(),
    "wordpiece": word_piece("".join(CHARACTERS)),
}
LEFT_OUT = ("Cc", "Cf", "Zs")  # what BERT's normalizer drops, beside spaces
EXPECTED = {"decoded", "unknown", "no tokens", "impossible"}
IMPOSSIBLE = ("needs a non-empty text", "already ends in its target_new")
NO_TOKENS = ("the tokenizer has no token for the characters", "gives no tokens with")
WORDS = ("John Smith", "Zoë", "李小龍", "C++", "a.b*", "x's", " ", "\u200b", "\n", "🙂", "##", "▁", "e\u0301", "\r\n\t")


def text_of(rng, least=0, most=3):
    """A few words, ASCII characters and characters of any script."""
    kinds = (
        lambda: rng.choice(WORDS),
        lambda: "".join(rng.choices(ASCII, k=4)),
        lambda: "".join(rng.choices(CHARACTERS, k=2)),
    )
    return "".join(rng.choice(kinds)() for _ in range(rng.randint(least, most)))


def plain(name, text):
    """A text without what a tokenizer of that name does not keep."""
    if name == "sentencepiece":
        return text.replace("▁", " ").lstrip(" ")
    if name == "unigram":
        normal = TOKENIZERS[name].backend_tokenizer.normalizer  # Python's NFKC may be that of another year
        return normal.normalize_str(text).replace("▁", " ").lstrip(" ")
    if name == "wordpiece":
        return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in LEFT_OUT)
    return text


def said(name, ids):
    text = TOKENIZERS[name].decode(ids, skip_special_tokens=True)
    return text.lstrip(" ") if name == "unigram" else plain(name, text)


def check_by_decoding(name, row, text, end, target):
    """Up to the lookup token the subject is whole, one token earlier it is not; the target ends the whole text.

    Texts that hold unknown or special tokens do not come back from decoding, nor does a subject whose last letter is
    one with an accent behind it.
    """
    special, whole = TOKENIZERS[name].all_special_ids, plain(name, text[:end])
    if any(token in special for token in (row.prompt + row.target)[1:]) or not plain(name, text).startswith(whole):
        return "unknown"
    assert said(name, row.prompt[: row.lookup + 1]).startswith(whole)
    assert not whole or not said(name, row.prompt[: row.lookup]).startswith(whole)
    assert said(name, row.prompt + row.target).endswith(plain(name, target))
    return "decoded"


def check_tokens(name, fact, prefix):
    """The position is right, or there is none and the error says so: what came out, in a word."""
    text = prefix + fact.text
    start = len(prefix) + fact.prompt.index("{}")
    end = start + len(fact.subject.rstrip())
    try:
        row = fact_row(TOKENIZERS[name], fact, prefix)
    except ValueError as error:
        empty = "" in (plain(name, fact.subject), plain(name, fact.target_new))
        return "no tokens" if empty and any(part in str(error) for part in NO_TOKENS) else str(error)
    ids, offsets = encode(TOKENIZERS[name], text)
    assert row.prompt == tuple(ids)
    first, stop = offsets[row.lookup]
    assert first < end
    assert stop > start
    assert all(a >= end or a == b for a, b in offsets[row.lookup + 1 :])
    assert lookup(offsets, start, fact.subject, "last") == len(ids) - 1
    return check_by_decoding(name, row, text, end, fact.target_new)


def check_fact(name, subject, before, after, target, prefix):
    """A fact is impossible and says why, or the tokenizer finds its place."""
    try:
        fact = Fact(subject, f"{before}{{}}{after}", target)
    except ValueError as error:
        return "impossible" if any(part in str(error) for part in IMPOSSIBLE) else str(error)
    return check_tokens(name, fact, prefix)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32))
def test_tokens(name, seed):
    rng = random.Random(seed)
    least = (1, 0, 0, 1, 0)
    found = Counter(check_fact(name, *(text_of(rng, few) for few in least)) for _ in range(PROMPTS))
    assert set(found) <= EXPECTED
    assert found["decoded"] > 0.6 * PROMPTS


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "texts",
    [
        ("</s>", "of ", " is", "Greek", ""),
        ("\x00", "of ", " is", "Greek", ""),
        ("John", "", "", "\u200b", "John is John. "),
        ("\x07\x08", "", " is", "Greek", "\x00"),
        ("", "of ", " is", "Greek", ""),
        ("John", "Greek ", " is Greek", "Greek", ""),
    ],
)
def test_tokens_at_the_edge(name, texts):
    assert check_fact(name, *texts) in EXPECTED


# readers


class Dice:
    """Random parts of records; now and then one is missing or anything at all."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def text(self):
        usual = ("Ada", "Ada", "Bo C.", "a?b", "of Ada is", "Ada and Bo C. are", "Ada is Ada", "{} is", "{} speaks")
        odd = ("", "  ", "李", "{}", "{} {}", "Adah is", text_of(self.rng))
        return self.rng.choice(usual if self.rng.random() < 0.85 else odd)

    def texts(self):
        return [self.text() for _ in range(self.rng.randint(0, 2))]

    def junk(self, depth=2):
        leaves = (None, True, 7, -1.5, float("nan"), "x\ud800", self.text(), [], {})
        inner = self.junk(depth - 1) if depth else None
        deep = ([inner], {"str": inner}, {"prompt": inner})
        return self.rng.choice((*leaves, *deep))

    def object(self, **fields):
        """The fields, of which rarely one is missing or wrong."""
        key = self.rng.choice(list(fields))
        if self.rng.random() < 0.04:
            fields[key] = self.junk()
        elif self.rng.random() < 0.04:
            del fields[key]
        return fields

    def some(self, part):
        return [part() for _ in range(self.rng.randint(0, 2))]

    def edit(self):
        prompt = self.rng.choice(("{} is", "{} speaks", self.text()))
        new = self.object(str=self.text())
        return self.object(prompt=prompt, subject=self.text(), relation_id=self.text(), target_new=new,
                           target_true=self.text(), question=self.text())  # fmt: skip

    def probe(self):
        return self.object(prompt=self.rng.choice((self.text(), self.texts())), ground_truth=self.rng.choice(
            (self.text(), self.texts(), [self.texts(), self.texts()])))  # fmt: skip

    def beside(self):
        names = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
        return {name: self.texts() for name in names}

    def counterfact(self):
        return self.object(case_id=1, requested_rewrite=self.edit(), **self.beside())

    def zsre(self):
        return self.object(subject=self.text(), src=self.text(), answers=self.texts(), alt=self.text(),
                           rephrase=self.text(), loc=self.text(), loc_ans=self.text())  # fmt: skip

    def wiki_recent(self):
        return self.object(subject=self.text(), prompt=self.text(), target_new=self.text(), rephrase=self.texts(),
                           ground_truth=self.text(), portability=self.object(Reasoning=self.some(self.probe)),
                           locality=self.object(Forgetfulness=self.some(self.probe)))  # fmt: skip

    def s2rke(self):
        star = self.some(lambda: self.object(requested_rewrite=self.edit(), **self.beside()))
        name = self.object(name=self.text())
        return self.object(subjectID=self.rng.randint(0, 9), subject=name, Star_Topology=star)

    def mquake(self):
        hops = self.some(lambda: self.object(cloze=self.text(), answer=self.text(), answer_alias=self.texts()))
        return self.object(case_id=2, requested_rewrite=self.some(self.edit), questions=self.texts(),
                           new_answer=self.text(), new_answer_alias=self.texts(), new_single_hops=hops)  # fmt: skip

    def file(self, rows, array):
        """The records as bytes: an array or lines, any of JSON's and UTF-8's liberties."""
        end = self.rng.choice(("\n", "\r\n"))
        parts = [json.dumps(row, ensure_ascii=self.rng.random() < 0.5) for row in rows]
        text = f"[{f',{end}'.join(parts)}]" if array else end.join(parts)
        return self.rng.choice((b"\xef\xbb\xbf", b"")) + text.encode("utf-8", "surrogatepass")


def check_read(reader, path, options, whole):
    """What is read adds up and can be asked, or the error names the file and the record."""
    try:
        facts = reader(path, **options)
    except ValueError as error:
        return str(path) in str(error) and any(part in str(error) for part in ("record ", "has no records"))
    report = facts.report
    assert report.found == report.kept + report.left + len(report.dropped)
    assert len(facts) == report.kept <= (options["limit"] or report.found)
    assert whole or not report.complete
    for fact in facts:
        assert fact.subject in fact.text
        assert fact.prompt.count("{}") == 1
        assert all(probe.answer.strip() for probe in fact.portability + fact.locality + fact.neighborhood)
    return report.to_frame().shape == (len(report.dropped), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def check_file(folder, seed):
    """A file of random records in a format, some of them cut off or packed, read with random options."""
    dice = Dice(seed)
    rng, name = dice.rng, dice.rng.choice(("counterfact", "zsre", "wiki_recent", "s2rke", "mquake"))
    array = rng.random() < 0.5
    data = dice.file([getattr(dice, name)() for _ in range(RECORDS)], array)
    cut = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
    path = folder / "random.json"
    path.write_bytes(gzip.compress(data[:cut], 1) if rng.random() < 0.3 else data[:cut])
    options = {
        "strict": rng.random() < 0.3,
        "limit": rng.choice((None, None, 1, 3)),
        "seed": rng.choice((None, 0, 1)),
        "conflicts": rng.choice(("first", "keep")),
        "several": rng.choice(("drop", "first", "last")),
    }
    return check_read(getattr(kf, name), path, options, cut == len(data) or not array)


@settings(max_examples=FILES // PROMPTS)
@given(seed=st.integers(0, 2**32))
def test_readers(folder, seed):
    assert all(check_file(folder, seed + i) for i in range(PROMPTS))


# corpora


def check_corpus(folder, rng):
    """A corpus of random lines is read as it was written; one that is damaged is read, or the error names the file."""
    path = folder / rng.choice(("random.txt", "random.jsonl", "random.txt.gz", "random.jsonl.gz"))
    texts, junk = [text_of(rng) for _ in range(RECORDS)], ".jsonl" in path.name and rng.random() < 0.2
    rows = [json.dumps({"text": text}) for text in texts] if ".jsonl" in path.name else texts
    data = "\n".join([*rows, json.dumps(Dice(0).junk())] if junk else rows).encode()
    data = gzip.compress(data, 1) if path.suffix == ".gz" else data
    damaged = rng.random() < 0.5
    if damaged:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + (b"" if rng.random() < 0.5 else rng.randbytes(3) + data[at + 3 :])
    path.write_bytes(data)
    try:
        found = list(documents(path))
    except ValueError as error:
        return str(path) in str(error) and (damaged or junk)
    if ".txt" in path.name:
        lines = re.split("\r\n|\r|\n", "\n".join(texts).removeprefix("\ufeff"))
        texts = [line.strip() for line in lines if line.strip()]
    return damaged or found == texts


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_corpora(folder, seed):
    rng = random.Random(seed)
    assert all(check_corpus(folder, rng) for _ in range(PROMPTS))
