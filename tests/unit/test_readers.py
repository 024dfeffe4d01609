"""Published formats, read from files that this project wrote in them (tests/data): every field in its place."""

import gzip
import json
from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import pandas as pd
import pytest

from kedit_lab import facts as kf
from kedit_lab.facts import records
from kedit_lab.facts.records import download, sha256_of
from kedit_lab.facts.validation import mentions, template
from kedit_lab.types import Probe

DATA = Path(__file__).parents[1] / "data"
COMMIT = "0123456789" * 4
THREE_FOR_TWO = {"prompt": ["Bo is", "Cy is"], "ground_truth": [["a"], ["b"], ["c"]]}


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def edit(subject, new="Tamil", prompt="{} speaks", true="Danish", relation="P103"):
    true = {"str": true} if true else None
    asked = {"subject": subject, "prompt": prompt, "target_new": {"str": new}, "target_true": true}
    return {"case_id": 0, "requested_rewrite": asked | {"relation_id": relation}}


# each format


def test_counterfact():
    facts = kf.counterfact(DATA / "counterfact.json")
    assert [fact.id for fact in facts] == ["0", "1", "2", "3", "4"]
    first = facts[0]
    assert (first.subject, first.prompt, first.relation) == ("Orsolya Brandt", "The mother tongue of {} is", "P103")
    assert (first.target_new, first.target_true) == ("Tamil", "Danish")
    assert first.paraphrases[1] == "Orsolya Brandt spoke the language"
    assert first.neighborhood[0] == Probe("The mother tongue of Vilho Aune is", "Danish", "neighbor")
    assert first.generation == ("Orsolya Brandt's mother tongue is", "Where Orsolya Brandt is from, people speak")
    assert facts[2].text == "C++ (a.k.a. c.*) was developed by"
    assert (facts[4].prompt, facts[4].target_new) == ("{} is in the country of", "Norway")
    assert facts[1].text == 'Ölüdeniz "Blue" Ferry, which sails for'
    assert facts.report.counts().empty
    assert facts.summary() == "5 facts: 5 subjects, 5 relations, 1.0 facts per subject (1 to 1)"


@pytest.mark.parametrize("name", ["counterfact_bom_crlf.json", "counterfact.jsonl", "counterfact.jsonl.gz"])
def test_the_same_records_in_other_files(name):
    assert list(kf.counterfact(DATA / name)) == list(kf.counterfact(DATA / "counterfact.json"))


def test_a_folder_and_its_usual_file(tmp_path):
    assert kf.multi_counterfact(DATA)[1].subject == 'Ölüdeniz "Blue" Ferry'
    assert kf.counterfact(DATA, file="multi_counterfact.json") == kf.multi_counterfact(DATA)
    with pytest.raises(ValueError, match=r"has none of counterfact.json; give the path of the file itself"):
        kf.counterfact(tmp_path)


def test_zsre():
    true, false = kf.zsre(DATA), kf.zsre(DATA, target="alt")
    assert (true[0].prompt, true[0].target_new) == ("What river does {} cross?", "Odder")
    assert (true[0].target_true, true[0].aliases, true[0].portability) == (None, ("River Odder",), ())
    assert (false[0].target_new, false[0].target_true) == ("Glimm", "Odder")
    assert false[0].portability == (
        Probe("Into what bay does the river under Tarn Bridge flow?", "Nord Bay", "reasoning"),
    )
    assert true[0].locality == (Probe("nq question: who sang the harbour song first?", "Dita Lowe", "unrelated"),)
    assert true[0].paraphrases == ("Which river is under Tarn Bridge?",)
    assert [fact.subject for fact in true] == ["Tarn Bridge", "Art", "Oda"]  # "Art" is not in "Arthur's"
    assert true[1].locality == ()
    assert true[2].locality[0].answer == "12"
    assert dict(true.report.counts()) == {
        "subject several times in the prompt": 1,
        "subject missing in the prompt": 1,
    }
    assert false.report.counts()["empty target_new"] == 1
    assert true.summary().endswith("no named relations, 1.0 facts per subject (1 to 1)")
    with pytest.raises(ValueError, match="target is 'false'; give 'answers'"):
        kf.zsre(DATA, target="false")


def test_zsre_subject_several_times():
    prompts = {
        rule: next(f.prompt for f in kf.zsre(DATA, several=rule) if f.subject == "Ida") for rule in ("first", "last")
    }
    assert prompts == {"first": "Who is {}, Ida's mother?", "last": "Who is Ida, {}'s mother?"}


def test_knowedit():
    fact = kf.knowedit(DATA, "ZsRE")[0]
    assert (fact.prompt, fact.target_true) == ("Which family does {} belong to?", "Rock moths")
    assert fact.paraphrases == ("What family are Kaldera?",)
    assert fact.generation == ("Which family does Kaldera belong to?",)
    assert fact.locality == (
        Probe("The taxon rank of Kaldera is", "genus", "Relation_Specificity", ("rank of genus",)),
    )
    assert fact.portability[0].answer == "ferns"
    assert kf.knowedit(DATA, "ZsRE").report.skipped == 1
    [fact] = kf.knowedit(DATA, "WikiData_counterfact")
    assert [probe.kind for probe in fact.locality] == ["Relation_Specificity", "Forgetfulness"]
    assert fact.target_true == fact.locality[1].answer == "bailiff"
    both = kf.knowedit(DATA / "wikibio-test-all.json")
    assert [fact.target_new for fact in both] == ["She drew the first map of the Glimm delta.", "The map is lost."]
    assert both[0].prompt.startswith("This is a passage about {}. Mirja Solheim (1901")
    with pytest.raises(ValueError, match="give part, one of ZsRE, WikiData_recent, WikiData_counterfact, WikiBio"):
        kf.knowedit(DATA)
    with pytest.raises(ValueError, match="part is 'zsre'; give one of ZsRE"):
        kf.knowedit(DATA, "zsre")


def test_wiki_recent():
    facts = kf.wiki_recent(DATA)
    assert list(kf.knowedit(DATA, "WikiData_recent"))[1] == facts[1]
    first = facts[0]
    assert (first.target_true, first.generation) == (None, ("Leif Arnesen died in",))
    assert [(p.kind, p.answer, p.aliases) for p in first.portability] == [
        ("Logical_Generalization", "no", ("false", "incorrect")),
        ("Reasoning", "Runa Dahl", ("R. Dahl",)),
        ("Subject_Aliasing", "Lyngvig", ("Port Lyngvig",)),
    ]
    assert [(p.prompt[:10], p.answer, p.aliases) for p in first.locality] == [
        ("The father", "Arne", ()),
        ("The mother", "Siv", ("Siv A.",)),
    ]
    assert (facts[1].target_new, facts[1].aliases, facts[1].portability) == ("mayor", ("Lord Mayor",), ())
    assert facts.report.skipped == 1
    assert "1 prompts without an answer skipped" in str(facts.report)


def test_s2rke():
    facts = kf.s2rke(DATA)
    assert [(fact.id, fact.relation) for fact in facts] == [
        ("0.0", "isLocatedIn"),
        ("0.1", "directed"),
        ("1.0", "isMarriedTo"),
    ]
    assert [probe.answer for probe in facts[0].neighborhood] == ["Lyngvig"] * 2
    assert facts[1].paraphrases == ("The director of The Salt Mirror is",)
    assert dict(facts.report.counts()) == {"conflict": 1}
    assert facts.summary() == "3 facts: 2 subjects, 3 relations, 1.5 facts per subject (1 to 2)"


def test_mquake():
    """Shared edits are kept once with all questions; a case with an edit that cannot be made is dropped whole."""
    facts = kf.mquake(DATA)
    assert [fact.id for fact in facts] == ["1.0", "1.1"]
    first = facts[0]
    assert first.paraphrases == ("Which sport is Tarn Town F.C. associated with?",)
    assert [(p.answer, p.kind) for p in first.portability] == [("Peru", "multi_hop")] * 2 + [("brooms", "multi_hop")]
    assert first.portability[0].aliases == ("Republic of Peru",)
    assert first.locality == (Probe("The capital of Peru is", "Lima", "single_hop", ("City of Kings",)),)
    assert (first.aliases, facts[1].aliases) == (("stone curling",), ("PE",))
    assert [(row.record, row.reason) for row in facts.report.dropped] == [
        (2, "duplicate"),
        (3, "edit of a dropped case"),
        (3, "conflict"),
    ]
    assert len(kf.mquake(DATA, conflicts="keep")) == 4
    assert kf.mquake(DATA, limit=1) == []
    with pytest.raises(ValueError, match="conflicts is 'last'; MQuAKE's cases depend on each other"):
        kf.mquake(DATA, conflicts="last")


def case(*edits, asks=(), hops=()):
    """A MQuAKE record whose one question presupposes all of its edits."""
    asked = [
        {"subject": s, "prompt": "{} is from", "relation_id": "P1", "target_new": {"str": new}} for s, new in edits
    ]
    single = [{"cloze": cloze, "answer": answer} for cloze, answer in hops]
    return {"case_id": 0, "requested_rewrite": asked, "questions": asks, "new_answer": "yes", "new_single_hops": single}


def test_a_case_is_taken_with_all_that_its_questions_presuppose(tmp_path):
    """Also where an edit of it is in another case; a case that is not taken asks nothing."""
    small, large = case(("Ann", "Chile"), asks=["one?"]), case(("Ann", "Chile"), ("Bob", "Peru"), asks=["both?"])
    path = write(tmp_path / "m.json", [small, large])
    names = lambda facts: {fact.subject: [probe.prompt for probe in fact.portability] for fact in facts}  # noqa: E731
    assert names(kf.mquake(path)) == {"Ann": ["one?", "both?"], "Bob": []}
    assert names(kf.mquake(path, limit=1)) == {"Ann": ["one?"]}
    assert names(kf.mquake(path, limit=2)) == {"Ann": ["one?", "both?"], "Bob": []}
    path = write(tmp_path / "m.json", [large, case(("Cid", "Oman"))])
    drawn = [names(kf.mquake(path, limit=2, seed=seed)) for seed in range(8)]
    assert all(found in ({"Ann": ["both?"], "Bob": []}, {"Cid": []}) for found in drawn)
    both = kf.mquake(write(tmp_path / "m.json", [small, large]), seed=0)
    assert both.report.found == 3 == both.report.kept + len(both.report.dropped)


def test_what_one_case_keeps_another_may_change(tmp_path):
    hops = [("Bob is from", "Rome"), ("Dee is from", "Oslo")]
    path = write(tmp_path / "m.json", [case(("Ann", "Chile"), hops=hops), case(("Bob", "Peru"))])
    facts = kf.mquake(path)
    assert [probe.prompt for probe in facts[0].locality] == ["Dee is from"]
    assert str(facts.report).endswith("1 locality prompts that another edit changes left out")
    assert [probe.prompt for probe in kf.mquake(path, limit=1)[0].locality] == ["Bob is from", "Dee is from"]


@pytest.mark.parametrize(
    ("reader", "row", "count"),
    [
        (kf.counterfact, edit("Ada", true=None) | {"neighborhood_prompts": ["Bo speaks", "Cy speaks"]}, 2),
        (kf.zsre, {"subject": "Ada", "src": "Ada?", "answers": ["a"], "loc": "Who", "loc_ans": ""}, 1),
        (kf.zsre, {"subject": "Ada", "src": "Ada?", "answers": ["a"], "loc": "Who", "loc_ans": float("nan")}, 1),
        (kf.mquake, case(("Ann", "Chile"), asks=["one?", "two?"]) | {"new_answer": None}, 2),
        (kf.mquake, case(("Ann", "Chile"), hops=[("Bob is from", "")]), 1),
        (
            kf.wiki_recent,
            {"subject": "Ada", "prompt": "Ada is", "target_new": "a", "locality": {"R": [{"prompt": None}]}},
            1,
        ),
    ],
)
def test_prompts_without_an_answer_are_counted(tmp_path, reader, row, count):
    report = reader(write(tmp_path / "c.json", [row])).report
    assert (report.kept, report.skipped) == (1, count)


# what is kept


def test_validation_report():
    facts = kf.counterfact(DATA / "counterfact_odd.json")
    assert [(row.record, row.reason) for row in facts.report.dropped] == [
        (2, "duplicate"),
        (3, "conflict"),
        (4, "subject missing in the prompt"),
        (5, "subject several times in the prompt"),
        (6, "identical targets"),
        (7, "empty target_new"),
        (8, "empty subject"),
        (9, "prompt that cannot be asked"),
    ]
    assert [fact.subject for fact in facts] == ["Orsolya Brandt", "Pelle Marr", "Pelle Marr"]
    assert facts[1].prompt == "The employer of {} is"  # the prompt named the subject; it has a slot now
    assert facts[2].target_true is None
    report = facts.report
    assert report.found == 11 == report.kept + len(report.dropped) + report.left
    assert str(report).endswith(
        "11 records read; 11 edits found, 3 kept; 8 dropped (1 duplicate, 1 conflict, 1 subject missing in the prompt, "
        "1 subject several times in the prompt, 1 identical targets, 1 empty target_new, 1 empty subject, "
        "1 prompt that cannot be asked)"
    )
    frame = report.to_frame()
    assert list(frame.columns) == ["record", "subject", "reason", "detail"]
    assert frame["detail"][1] == "record 1 asks for 'Tamil', this one for 'Welsh'"
    assert report.sha256 == sha256_of(DATA / "counterfact_odd.json")
    assert repr(facts) == f"FactList({facts.summary()}; 8 dropped)"
    pd.testing.assert_frame_equal(facts.to_frame(), kf.to_frame(facts))


@pytest.mark.parametrize(
    ("rule", "kept", "counts"),
    [
        ("first", ["Tamil", "Peru"], {"conflict": 2, "duplicate": 1}),
        ("last", ["Peru", "Welsh"], {"conflict": 3}),
        ("keep", ["Tamil", "Peru", "Welsh"], {"duplicate": 2}),
    ],
)
def test_conflicts(tmp_path, rule, kept, counts):
    rows = [edit("Ada"), edit("Bo", "Peru"), edit("Ada", "Welsh"), edit("Ada", "Tamil"), edit("Ada", "Welsh")]
    facts = kf.counterfact(write(tmp_path / "c.json", rows), conflicts=rule)
    assert [fact.target_new for fact in facts] == kept
    assert dict(facts.report.counts()) == counts
    assert facts.report.found == 5 == facts.report.kept + len(facts.report.dropped)


def test_limit_and_order(tmp_path):
    rows = [edit(name) for name in "ABCDEFGHIJ"]
    path = write(tmp_path / "c.json", rows)
    names = lambda **options: "".join(fact.subject for fact in kf.counterfact(path, **options))  # noqa: E731
    assert names() == "ABCDEFGHIJ"
    assert names(limit=3) == "ABC"
    assert names(limit=99) == "ABCDEFGHIJ"
    assert names(seed=1) == names(seed=1) != names(seed=2)
    assert Counter(names(seed=1)) == Counter("ABCDEFGHIJ")
    assert names(seed=1, limit=3) == names(seed=1)[:3]
    stopped, sampled = kf.counterfact(path, limit=3).report, kf.counterfact(path, limit=3, seed=1).report
    assert (stopped.records, stopped.complete, stopped.left) == (3, False, 0)
    assert (sampled.records, sampled.complete, sampled.left) == (10, True, 7)
    assert "3 records read (the rest was not needed)" in str(stopped)
    assert str(sampled).endswith("7 beyond the limit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; give 1 or more"),
        ({"conflicts": "all"}, "conflicts is 'all'; give one of first, last, keep"),
        ({"several": "any"}, "several is 'any'; give one of drop, first, last"),
        ({"sha256": "ab" * 32}, "has the SHA-256 [0-9a-f]{64}, not (ab){32}; it is another version"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        kf.counterfact(DATA / "counterfact.json", **options)


def test_right_checksum():
    assert kf.counterfact(DATA, sha256=sha256_of(DATA / "counterfact.json").upper())


@pytest.mark.parametrize(
    ("text", "name", "starts"),
    [
        ("Art in Arthur's house", "Art", [0]),
        ("Art's house, Art", "Art", [0, 13]),
        ("smart", "art", []),
        ("C++ and C", "C", [0, 8]),
        ("C++ and C", "C++", [0]),
        ("李小梅的书", "李小梅", [0]),
        ("x x x", "x x", [0, 2]),
        ("a.b", "a?b", []),
        ("", "a", []),
    ],
)
def test_mentions(text, name, starts):
    assert mentions(text, name) == starts


def test_template():
    assert template("{} and {} speak", "Ada", False, "last") == "Ada and {} speak"
    assert template("{} and {} speak", "Ada", False, "first") == "{} and Ada speak"
    assert template("{} knows Ada", "Ada", False, "drop") == "{} knows Ada"
    with pytest.raises(ValueError, match="braces in the prompt"):
        template("What does {} do in Ada?", "Ada", True, "drop")


# what is wrong with a file


def rewrite(**change):
    return {"requested_rewrite": edit("Ada")["requested_rewrite"] | change}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"src": "q"}, "field requested_rewrite: is missing; this object has src"),
        ({}, "field requested_rewrite: is missing; this object has no fields"),
        ({"requested_rewrite": []}, r"field requested_rewrite: \[\] is no object"),
        (rewrite(subject=None), "field requested_rewrite.subject: is null"),
        (rewrite(subject=float("nan")), "field requested_rewrite.subject: is null"),
        (rewrite(subject=float("inf")), "field requested_rewrite.subject: inf is no text"),
        (rewrite(subject=["Ada"]), r"field requested_rewrite.subject: \['Ada'\] is no text"),
        (rewrite(target_new={"id": "Q1"}), "field requested_rewrite.target_new.str: is missing; this object has id"),
        (rewrite(target_new=True), "field requested_rewrite.target_new: True is no text"),
        (rewrite(prompt="{} \ud800"), r"field requested_rewrite.prompt: '{} \\ud800' is no Unicode text"),
        (rewrite() | {"paraphrase_prompts": [1, {}]}, r"field paraphrase_prompts: {} is no text"),
        ("Ada", r"field \(all\): 'Ada' is no object"),
        (["Ada"], r"field \(all\): \['Ada'\] is no object"),
    ],
)
def test_wrong_schema(tmp_path, row, message):
    path = write(tmp_path / "wrong.json", [edit("Ada"), edit("Bo"), row])
    with pytest.raises(ValueError, match=rf"wrong.json: record 3, {message}"):
        kf.counterfact(path)
    facts = kf.counterfact(path, strict=False)
    assert [fact.subject for fact in facts] == ["Ada", "Bo"]
    assert [(row.record, row.reason) for row in facts.report.dropped] == [(3, "not in the format")]
    assert facts.report.found == 3


@pytest.mark.parametrize(
    ("reader", "row", "field"),
    [
        (kf.zsre, {"subject": "Ada", "src": "Ada?"}, "answers"),
        (kf.zsre, {"subject": "Ada", "answers": ["a"]}, "src"),
        (kf.wiki_recent, {"subject": "Ada", "prompt": "Ada is"}, "target_new"),
        (kf.wiki_recent, {"subject": "Ada", "prompt": "Ada is", "target_new": "a", "portability": []}, "portability"),
        (
            kf.wiki_recent,
            {"subject": "Ada", "prompt": "Ada is", "target_new": "a", "locality": {"Forgetfulness": [{}, 3]}},
            r"locality.Forgetfulness\[1\]",
        ),
        (
            kf.wiki_recent,
            {"subject": "Ada", "prompt": "Ada is", "target_new": "a", "locality": {"R": [{"question": "Bo is"}]}},
            r"locality.R\[0\].prompt",
        ),
        (
            kf.wiki_recent,
            {"subject": "Ada", "prompt": "Ada is", "target_new": "a", "locality": {"R": [THREE_FOR_TWO]}},
            r"locality.R\[0\].ground_truth",
        ),
        (kf.s2rke, {"subject": {"name": "Ada"}}, "Star_Topology"),
        (kf.s2rke, {"subject": {"name": "Ada"}, "Star_Topology": [{}]}, r"Star_Topology\[0\].requested_rewrite"),
        (kf.mquake, {"requested_rewrite": {}}, "requested_rewrite"),
        (kf.mquake, {"requested_rewrite": [{"subject": "Ada"}]}, r"requested_rewrite\[0\].(target_new|prompt)"),
    ],
)
def test_wrong_schema_of_the_others(tmp_path, reader, row, field):
    with pytest.raises(ValueError, match=f"wrong.json: record 1, field {field}: .*; is this the right reader?"):
        reader(write(tmp_path / "wrong.json", [row]))


@pytest.mark.parametrize("missing", [30, 9, 1])
def test_a_cut_archive_is_read_to_its_end(tmp_path, missing):
    """The record that is named is the one where the text ends."""
    data = gzip.compress(json.dumps([edit(f"Subject {i}", f"lamp {i**9}") for i in range(3000)]).encode())
    path = tmp_path / "cut.json.gz"
    path.write_bytes(data[:-missing])
    with pytest.raises(ValueError, match=r"record (2999|3000) ends in the middle: the file is truncated or damaged"):
        kf.counterfact(path)


def test_a_letter_that_was_cut_is_the_end_of_the_file(tmp_path):
    data = json.dumps([edit("Ada"), edit("Zoë")], ensure_ascii=False).encode()
    (tmp_path / "cut.json").write_bytes(data[: data.index("ë".encode()) + 1])
    with pytest.raises(ValueError, match="record 2 ends in the middle: the file is truncated"):
        kf.counterfact(tmp_path / "cut.json")


@pytest.mark.parametrize(("start", "kind"), [(b"PAR1", "parquet"), (b"PK\x03\x04", "zip")])
def test_another_kind_of_file_is_named(tmp_path, start, kind):
    path = tmp_path / "facts.json"
    path.write_bytes(start + b"\x00" * 50)
    with pytest.raises(ValueError, match=rf"facts.json is a {kind} file; give a .json or .jsonl"):
        kf.counterfact(path)


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "c.json", [edit("Ada")])
    assert len(kf.counterfact("~/c.json")) == 1


GOOD = json.dumps([edit("Ada"), edit("Bo")]).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no records"),
        (b" \r\n", "has no records"),
        (b"[]", "has no records"),
        (GOOD[:-20], "record 2 ends in the middle: the file is truncated or damaged"),
        (GOOD[:-1], "record 2 ends in the middle"),
        (GOOD[:5], "record 1 ends in the middle"),
        (GOOD.replace(b'"prompt"', b"prompt", 1) + b" " * 40, "record 1 is not valid JSON"),
        (GOOD.replace(b"}}, {", b"}} {"), "record 1: no comma between it and the next record"),
        (GOOD[:-1] + b", ]", "record 2: a comma with no record behind it"),
        (GOOD + b"more", "record 2: more text behind the closing bracket"),
        (GOOD.replace(b"Ada", b"\xff\xfe"), "the bytes are no UTF-8"),
        ('["Zo\u00eb"]'.encode("utf-16"), "the bytes are no UTF-8"),
        (b"[" * 100_000, "is nested too deeply to be read"),
        (b"[" + b"1" * 5000 + b"]", "record 1: Exceeds the limit"),
        (gzip.compress(GOOD, mtime=0)[:-30], "record [12] ends in the middle: the file is truncated or damaged"),
        (
            gzip.compress(GOOD, mtime=0)[:30] + b"?" * 60,
            "record 1 ends in the middle: the file is truncated or damaged",
        ),
    ],
)
def test_broken_files(tmp_path, data, message):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"broken.json.* {message}"):
        kf.counterfact(path)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_small_pieces(monkeypatch, size):
    """How much is read at a time changes nothing."""
    whole = [kf.counterfact(DATA / "counterfact.json"), kf.counterfact(DATA / "counterfact.jsonl.gz")]
    monkeypatch.setattr(records, "CHUNK", size)
    assert [kf.counterfact(DATA / "counterfact.json"), kf.counterfact(DATA / "counterfact.jsonl.gz")] == whole


# where a file comes from


def test_nothing_there():
    with pytest.raises(ValueError, match=r"there is no file at data/missing.json; give a path, or a hub dataset"):
        kf.counterfact("data/missing.json")
    with pytest.raises(ValueError, match="there is no file at missing"):
        kf.counterfact("missing")


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_a_hub_name_needs_a_commit(revision):
    with pytest.raises(ValueError, match=f"revision is {revision!r}; give the 40 digits of a commit of owner/name"):
        kf.counterfact("owner/name", revision=revision)


def test_offline(tmp_path, monkeypatch):
    """A file that is in the hub's cache is read without a network; one that is not gives a plain error."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"counterfact.json of owner/name at 01234567 was not found and could not be"):
        kf.counterfact("owner/name", revision=COMMIT)
    held = tmp_path / "datasets--owner--name" / "snapshots" / COMMIT / "benchmark" / "wiki_recent"
    held.mkdir(parents=True)
    (held / "recent_test.json").write_bytes((DATA / "recent_test.json").read_bytes())
    assert kf.wiki_recent("owner/name", revision=COMMIT) == kf.wiki_recent(DATA)
    assert kf.knowedit("owner/name", "WikiData_recent", revision=COMMIT).report.source == "owner/name"


def test_what_is_downloaded(monkeypatch):
    asked = []
    monkeypatch.setattr(records, "hf_hub_download", lambda *name, **options: asked.append((name, options)) or "there")
    assert download("owner/name", "a/b.json", COMMIT) == Path("there")
    assert asked == [(("owner/name", "a/b.json"), {"repo_type": "dataset", "revision": COMMIT})]
