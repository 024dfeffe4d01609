"""Random records and prompts: a reader or a tokenizer's lookup gives a right answer or an error that says what to do.

10,000 cases in all, every one of them in each run: 2,000 facts over three tokenizers (6,000), and 1,000 files of four
random records (4,000). Hypothesis draws the seeds; the texts come from ``random``, which is ten times faster.
"""

import gzip
import json
import random
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_lab import facts as kf
from kedit_lab.model.tokens import encode, fact_row, lookup
from kedit_lab.types import Fact
from tests.pico.tiny import byte_level, sentence_piece, word_piece

FACTS, FILES, RECORDS = 2000, 1000, 4
TOKENIZERS = {"byte level": byte_level(), "sentencepiece": sentence_piece(), "wordpiece": word_piece()}
LEFT_OUT = ("Cc", "Cf", "Zs")  # what BERT's normalizer drops, beside spaces
IMPOSSIBLE = ("needs a non-empty text", "already ends in its target_new")
NO_TOKENS = ("the tokenizer has no token for the characters", "gives no tokens with")
WORDS = ("John Smith", "Zoë", "李小龍", "C++", "a.b*", "x's", " ", "\u200b", "\n", "🙂", "##", "▁", "e\u0301", "\r\n\t")
UNWRITTEN = ("Cs", "Cn", "Co")  # half characters, and what no alphabet has (yet)
CHARACTERS = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c) not in UNWRITTEN]
CHARACTERS = [c for c in CHARACTERS if c not in "{}\ufffd"]
ASCII = CHARACTERS[:125]


def text_of(rng, most=3):
    """A few words, ASCII characters and characters of any script."""
    kinds = (
        lambda: rng.choice(WORDS),
        lambda: "".join(rng.choices(ASCII, k=4)),
        lambda: "".join(rng.choices(CHARACTERS, k=2)),
    )
    return "".join(rng.choice(kinds)() for _ in range(rng.randint(0, most)))


def plain(name, text):
    """A text without what a tokenizer of that name does not keep."""
    if name == "sentencepiece":
        return text.replace("▁", " ").lstrip(" ")
    if name == "wordpiece":
        return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in LEFT_OUT)
    return text


def said(name, ids):
    return plain(name, TOKENIZERS[name].decode(ids, skip_special_tokens=True))


def check_by_decoding(name, row, before, fact):
    """Up to the lookup token the subject is whole, one token earlier it is not; the target ends the whole text.

    Texts that hold unknown or special tokens do not come back from decoding.
    """
    special = TOKENIZERS[name].all_special_ids
    if any(token in special for token in (row.prompt + row.target)[1:]):
        return
    whole = plain(name, before + fact.subject.rstrip())
    assert said(name, row.prompt[: row.lookup + 1]).startswith(whole)
    assert not whole or not said(name, row.prompt[: row.lookup]).startswith(whole)
    assert said(name, row.prompt + row.target).endswith(plain(name, fact.target_new))


def check_tokens(name, fact, prefix):
    """The position is right, or there is none and the error says so."""
    text = prefix + fact.text
    start = len(prefix) + fact.prompt.index("{}")
    end = start + len(fact.subject.rstrip())
    try:
        row = fact_row(TOKENIZERS[name], fact, prefix)
    except ValueError as error:
        return (
            name == "wordpiece"
            and any(said in str(error) for said in NO_TOKENS)
            and ("" in (plain(name, fact.subject), plain(name, fact.target_new)))
        )
    ids, offsets = encode(TOKENIZERS[name], text)
    assert row.prompt == tuple(ids)
    first, stop = offsets[row.lookup]
    assert first < end
    assert stop > start
    assert all(a >= end or a == b for a, b in offsets[row.lookup + 1 :])
    check_by_decoding(name, row, text[:start], fact)
    assert lookup(offsets, start, fact.subject, "last") == len(ids) - 1
    return True


def check_fact(subject, before, after, target, prefix):
    """A fact is impossible and says why, or every tokenizer finds its place."""
    try:
        fact = Fact(subject, f"{before}{{}}{after}", target)
    except ValueError as error:
        return any(said in str(error) for said in IMPOSSIBLE)
    return all(check_tokens(name, fact, prefix) for name in TOKENIZERS)


@settings(max_examples=FACTS)
@given(st.integers(0, 2**32))
def test_tokens(seed):
    rng = random.Random(seed)
    assert check_fact(*(text_of(rng) for _ in range(5)))


@pytest.mark.parametrize(
    "texts",
    [
        ("</s>", "of ", " is", "Greek", ""),
        ("\x00", "of ", " is", "Greek", ""),
        ("John", "", "", "\u200b", "John is John. "),
        ("\x07\x08", "", " is", "Greek", "\x00"),
    ],
)
def test_tokens_at_the_edge(texts):
    assert check_fact(*texts)


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
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "random.json"


@settings(max_examples=FILES)
@given(st.integers(0, 2**32))
def test_readers(path, seed):
    dice = Dice(seed)
    rng, name = dice.rng, dice.rng.choice(("counterfact", "zsre", "wiki_recent", "s2rke", "mquake"))
    array = rng.random() < 0.5
    data = dice.file([getattr(dice, name)() for _ in range(RECORDS)], array)
    cut = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
    path.write_bytes(gzip.compress(data[:cut], 1) if rng.random() < 0.3 else data[:cut])
    options = {
        "strict": rng.random() < 0.3,
        "limit": rng.choice((None, None, 1, 3)),
        "seed": rng.choice((None, 0, 1)),
        "conflicts": rng.choice(("first", "keep")),
        "several": rng.choice(("drop", "first", "last")),
    }
    assert check_read(getattr(kf, name), path, options, cut == len(data) or not array)
