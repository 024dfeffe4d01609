"""Readers of the published sets: CounterFact, zsRE, KnowEdit, S2RKE and MQuAKE files into facts.

Every reader takes a path (.json, .jsonl, either of them gzipped), a folder that holds the usual file, or a dataset of
the hub as "owner/name" with ``revision``, the commit's 40 digits; a file that was fetched once is read offline.
Options that all of them share (``read``):

| option      | default | meaning                                                                                  |
|-------------|---------|------------------------------------------------------------------------------------------|
| `limit`     | all     | at most so many facts; without a seed reading stops there                                |
| `seed`      | none    | None keeps the file's order, a number shuffles its records first                         |
| `conflicts` | "first" | of edits of one subject and relation to different objects: the "first", "last", or "keep" |
| `several`   | "drop"  | a subject that its prompt names several times: "drop", or edit the "first", "last" place |
| `strict`    | True    | a record that lacks a needed field is an error; False drops it and says so in the report |
| `file`      | usual   | another file of the folder or dataset                                                    |
| `sha256`    | none    | what the file must hash to                                                               |

The data is its authors', under their licences; none of it comes with this package.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

from kedit_lab.facts.fields import Misfit, Row, short
from kedit_lab.facts.records import locate, records, sha256_of
from kedit_lab.facts.validation import CONFLICTS, SEVERAL, Collector, FactList, Unfit, Validation, consistent

Draft = dict[str, Any]
KNOWEDIT = {
    "ZsRE": "benchmark/ZsRE/ZsRE-test-all.json",
    "WikiData_recent": "benchmark/wiki_recent/recent_test.json",
    "WikiData_counterfact": "benchmark/wiki_counterfact/test_cf.json",
    "WikiBio": "benchmark/WikiBio/wikibio-test-all.json",
}


def read(source: str | Path, parse: Callable[[Row], list[Draft]], files: Sequence[str], joint: bool = False, *,
         limit: int | None = None, seed: int | None = None, conflicts: str = "first", several: str = "drop",
         strict: bool = True, file: str | None = None, revision: str | None = None,
         sha256: str | None = None) -> FactList:  # fmt: skip
    """Read, parse and check a file's records one by one (this module's table explains the options).

    Raises ValueError with file, record and field for anything that is not in the format.
    """
    for name, value, known in (("conflicts", conflicts, CONFLICTS), ("several", several, SEVERAL)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; give one of {', '.join(known)}")
    if limit is not None and not (isinstance(limit, Integral) and limit >= 1):
        raise ValueError(f"limit is {limit!r}; give 1 or more, or None for all")
    path = locate(source, files, file, revision)
    found = sha256_of(path, sha256)
    pile, skipped, number, complete = Collector(conflicts, several, joint), 0, 0, True
    with uncollected():
        for number, value in records(path):
            if limit is not None and seed is None and conflicts != "last" and pile.kept >= limit:
                number, complete = number - 1, False
                break
            row = Row(value)
            try:
                if not isinstance(value, dict):
                    raise Misfit("(all)", f"{short(value)} is no object")
                pile.add(number, parse(row))
            except Misfit as misfit:
                if strict:
                    hint = "is this the right reader? (strict=False drops such records)"
                    raise ValueError(f"{path}: record {number}, {misfit}; {hint}") from misfit
                pile.drop(number, "", Unfit("not in the format", str(misfit)))
                pile.found += 1
            skipped += len(row.skipped)
        facts = pile.facts(limit, seed)
    facts, changed = consistent(facts) if joint else (facts, 0)
    report = Validation(str(source), found, number, pile.found, len(facts), pile.kept - len(facts), skipped, complete,
                        tuple(pile.dropped), changed)  # fmt: skip
    return FactList(facts, report)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles inside: reading makes a million objects and no cycle, and the search takes a third of it."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def rewrite(row: Row, asked: Row, subject: str, target_true: str, id: str) -> Draft:
    """What CounterFact, S2RKE and MQuAKE share: prompt with a slot, objects, relation, and prompts beside them."""
    new = asked.answers("target_new")
    neighbors = row.answered(row.texts("neighborhood_prompts"), target_true, "neighbor")
    return {
        "subject": subject, "prompt": asked.text("prompt"), "filled": False, "target_new": new[0],
        "target_true": target_true, "relation": asked.label("relation_id", "relation").strip("<>"),
        "paraphrases": row.texts("paraphrase_prompts"), "neighborhood": tuple(neighbors),
        "generation": tuple(dict.fromkeys(row.texts("generation_prompts"))), "aliases": new[1:], "id": id,
    }  # fmt: skip


def object_of(asked: Row, key: str) -> str:
    """The first spelling of an object, or "" where there is none."""
    return asked.answers(key)[0].strip() if asked.first((key,)) is not None else ""


def counterfact(source: str | Path, **options: Any) -> FactList:
    """CounterFact (Meng et al. 2022), ``counterfact.json``: one edit a record.

    ``neighborhood_prompts`` should keep ``target_true``; generation prompts are kept once each; ``attribute_prompts``
    (subjects for which target_new is true) are not used by any metric here and not kept.
    """
    return read(source, counterfact_record, ["counterfact.json"], **options)


def multi_counterfact(source: str | Path, **options: Any) -> FactList:
    """MultiCounterFact (Meng et al. 2023), ``multi_counterfact.json``: CounterFact without edits that conflict."""
    return read(source, counterfact_record, ["multi_counterfact.json"], **options)


def counterfact_record(row: Row) -> list[Draft]:
    """The one edit of a CounterFact record."""
    asked = row.part("requested_rewrite", needed=True)
    return [rewrite(row, asked, asked.text("subject"), object_of(asked, "target_true"), row.label("case_id"))]


def s2rke(source: str | Path, **options: Any) -> FactList:
    """S2RKE (``S2RKE.json``): a record is a subject with its star of edits; ``id`` is "subjectID.place in the star"."""
    return read(source, s2rke_record, ["S2RKE.json"], **options)


def s2rke_record(row: Row) -> list[Draft]:
    """The edits of one subject."""
    subject, name = row.part("subject", needed=True).text("name"), row.label("subjectID")
    drafts = []
    for i, edge in enumerate(row.parts("Star_Topology", needed=True)):
        asked = edge.part("requested_rewrite", needed=True)
        drafts.append(rewrite(edge, asked, subject, object_of(asked, "target_true"), f"{name}.{i}"))
    return drafts


def mquake(source: str | Path, **options: Any) -> FactList:
    """MQuAKE (``MQuAKE-CF-3k-v2.json`` and others): a record is a case of edits, kept or dropped as a whole.

    The case's multi-hop questions are ``portability`` of its first edit: their answer presupposes all of them
    (``fact.id`` is "case_id.place"). An edit that cases share is kept once, with the questions of all of them. The
    hops of the new chain that no edit changes are its ``locality``.
    """
    if options.get("conflicts") == "last":
        raise ValueError("conflicts is 'last'; MQuAKE's cases depend on each other: give 'first' or 'keep'")
    files = ["MQuAKE-CF-3k-v2.json", "MQuAKE-CF-3k.json", "MQuAKE-CF.json", "MQuAKE-T.json"]
    return read(source, mquake_record, files, True, **options)


def mquake_record(row: Row) -> list[Draft]:
    """The edits of one case."""
    case, drafts = row.label("case_id"), []
    hops = [(hop.text("cloze"), *hop.answers("answer"), *hop.texts("answer_alias"))
            for hop in row.parts("new_single_hops")]  # fmt: skip
    for i, asked in enumerate(row.parts("requested_rewrite", needed=True)):
        draft = rewrite(asked, asked, asked.text("subject"), object_of(asked, "target_true"), f"{case}.{i}")
        filled = draft["prompt"].replace("{}", draft["subject"])
        spelled = [names for cloze, answer, *names in hops if (cloze, answer) == (filled, draft["target_new"])]
        drafts.append(draft | {"paraphrases": asked.texts("question"), "aliases": tuple(spelled[0]) if spelled else ()})
    edited = {draft["prompt"].replace("{}", draft["subject"]) for draft in drafts}
    others = tuple(probe for cloze, answer, *names in hops if cloze not in edited
                   for probe in row.answered([cloze], answer, "single_hop", tuple(names)))  # fmt: skip
    if drafts:
        answer, names = row.label("new_answer"), row.texts("new_answer_alias")
        asked = row.answered(row.texts("questions"), answer, "multi_hop", names)
        drafts[0] |= {"portability": tuple(asked), "locality": others}
    return drafts


def zsre(source: str | Path, target: str = "answers", **options: Any) -> FactList:
    """zsRE as MEND's authors split it, ``zsre_mend_eval.json``: one question a record.

    ``target`` says what is edited in: "answers", the true answer, as MEMIT, AlphaEdit and EAMET do (no target_true), or
    "alt", the false one, as EasyEdit does (target_true is the answer; its file's "New Question" is portability).
    The unrelated question of each record is locality, with the question mark that MEMIT adds.
    """
    if target not in ("answers", "alt"):
        raise ValueError(f"target is {target!r}; give 'answers' (as MEMIT) or 'alt' (as EasyEdit)")
    files = ["zsre_mend_eval.json", "zsre_mend_eval_portability_gpt4.json"]
    return read(source, lambda row: [zsre_record(row, target == "alt")], files, **options)


def zsre_record(row: Row, alt: bool) -> Draft:
    """The edit of a zsRE record: to the false answer ``alt``, or to the true one."""
    new = (row.text("alt"),) if alt else row.answers("answers")
    ported = row.part("portability") if alt else Row({})
    question, answer = ported.label("New Question"), ported.label("New Answer")
    unrelated, kept = row.label("loc").rstrip("?"), row.label("loc_ans")
    return {
        "subject": row.text("subject"), "prompt": row.text("src"), "filled": True, "target_new": new[0],
        "target_true": object_of(row, "answers") if alt else None, "paraphrases": row.texts("rephrase"),
        "portability": tuple(row.answered([question] if question else [], answer, "reasoning")),
        "locality": tuple(row.answered([f"{unrelated}?"] if unrelated else [], kept, "unrelated")), "aliases": new[1:],
    }  # fmt: skip


def knowedit(source: str | Path, part: str | None = None, **options: Any) -> FactList:
    """KnowEdit's ZsRE, WikiData_recent, WikiData_counterfact and WikiBio; ``part`` chooses in a folder or dataset.

    ``knowedit("zjunlp/KnowEdit", "ZsRE", revision=...)``. Portability and locality probes carry the file's names of
    them as ``kind``; nested answers give the first spelling and the others as aliases; fluency is measured behind the
    edit's own prompt, as EasyEdit does. WikiBio edits a sentence into a passage. Conflicts compare the prompt.
    """
    if part not in (None, *KNOWEDIT):
        raise ValueError(f"part is {part!r}; give one of {', '.join(KNOWEDIT)}")
    if part is None and not Path(source).is_file() and not options.get("file"):
        raise ValueError(f"{source} is no file; give part, one of {', '.join(KNOWEDIT)}")
    return read(source, lambda row: [knowedit_record(row)], [KNOWEDIT[part]] if part else [], **options)


def wiki_recent(source: str | Path, **options: Any) -> FactList:
    """KnowEdit's WikiData_recent as EAMET uses it: free text starts behind each record's ``rephrase``, if any."""
    return read(source, wiki_recent_record, [KNOWEDIT["WikiData_recent"]], **options)


def wiki_recent_record(row: Row) -> list[Draft]:
    """The one edit of a record, with EAMET's generation prompt."""
    draft = knowedit_record(row)
    return [draft | {"generation": draft["paraphrases"][:1] or draft["generation"]}]


def knowedit_record(row: Row) -> Draft:
    """The one edit of a KnowEdit record; WikiBio calls the fields concept, text and labels."""
    new = row.answers("target_new", "labels")
    ported, kept = row.part("portability"), row.part("locality")
    return {
        "subject": row.text("subject", "concept"), "prompt": row.text("prompt", "text"), "filled": True,
        "target_new": new[0], "target_true": next(iter(row.texts("ground_truth")), None),
        "paraphrases": row.texts("rephrase_prompt", "rephrase"),
        "portability": tuple(probe for kind in ported.value for probe in ported.probes(kind, kind)),
        "locality": tuple(probe for kind in kept.value for probe in kept.probes(kind, kind)),
        "generation": (row.text("prompt", "text"),), "aliases": new[1:], "id": row.label("case_id"),
    }  # fmt: skip
