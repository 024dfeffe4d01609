"""EAMET's smaller experiments, one measured point each, for ``kl.sweep``: prefixes, order, layers, relations, batches
and cost (EAMET, Figs. 5 and 8; Tables 6, 7, 9 and 12)."""

import random
from collections.abc import Sequence

from kedit_lab.edit.run import edit
from kedit_lab.facts.sets import by_density, lab_world, make_fact, subjects_of
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.study.bench import bench_methods
from kedit_lab.study.sequence import lab_reference, sequence
from kedit_lab.study.sweep import KINDS
from kedit_lab.types import Fact

RELATIONS = ("native_language", "country_of_citizenship", "year_of_birth", "spouse", "employer")
SPENT = ("seconds", "ratio", "steps", "equal seconds", "equal ratio")


def efficacy(lab: Lab, facts: Sequence[Fact], prefix: str = "") -> float:
    """The share of facts that the model, as it stands, says behind a text."""
    return float(evaluate(lab, facts, kinds=("rewrite",), prefix=prefix).summary()["efficacy"])


def behind(lab: Lab, method: str, size: int, per_subject: int, seed: int, lengths: Sequence[int],
           contexts: int = 3) -> dict[str, float]:  # fmt: skip
    """Efficacy behind texts of 0, 5, ... tokens, one column per length: means over ``contexts`` sampled texts (Fig. 5).

    The texts are sampled from the unedited model and are not those of the edit.
    """
    facts = by_density(size, per_subject, seed)
    texts = {length: lab.prefixes(contexts, length, seed=1) if length else ("",) for length in lengths}
    with edit(lab, facts, method).applied():
        found = {length: [efficacy(lab, facts, text) for text in some] for length, some in texts.items()}
    return {str(length): sum(values) / len(values) for length, values in found.items()}


def ordered(lab: Lab, method: str, order: int, size: int, per_subject: int, seed: int) -> dict[str, float]:
    """The metrics of one batch, its facts shuffled by ``order`` (0: facts of a subject side by side, Table 6).

    ``first`` and ``last`` are the efficacy of the facts that come first and last of their subject.
    """
    facts = by_density(size, per_subject, seed)
    if order:
        random.Random(f"order {order}").shuffle(facts)
    last = {fact.subject: fact for fact in facts}
    first = {fact.subject: fact for fact in reversed(facts)}
    with edit(lab, facts, method).applied():
        ends = {"first": efficacy(lab, list(first.values())), "last": efficacy(lab, list(last.values()))}
        return evaluate(lab, facts, kinds=KINDS).summary().dropna().to_dict() | ends


def relation_facts(size: int, per_subject: int, seed: int = 0, relations: Sequence[str] = RELATIONS) -> list[Fact]:
    """``size`` edits of persons, ``per_subject`` neighbours of a ring of relations each, all relations equally often.

    Raises ValueError where they cannot be: more facts a subject than relations, or a size that does not divide.
    """
    if not 1 <= per_subject <= len(relations) or size % (per_subject * len(relations)):
        raise ValueError(
            f"size is {size}, per_subject {per_subject}, for {len(relations)} relations; "
            f"give a multiple of per_subject x {len(relations)}, and at most {len(relations)} a subject"
        )
    world, rng = lab_world(), random.Random(f"relations {seed}")
    facts = []
    for i, subject in enumerate(rng.sample(subjects_of(world, "Person"), size // per_subject)):
        for at in range(i, i + per_subject):
            relation = world.relations[relations[at % len(relations)]]
            held = (world.known.get((subject, relation.id)), subject)
            target = rng.choice([o for o in world.answers[relation.id] if o not in held])
            facts.append(make_fact(world, subject, relation, target, rng))
    return facts


def by_relation(lab: Lab, method: str, size: int, per_subject: int, seed: int) -> dict[str, float]:
    """One batch over five relations and the efficacy of each, a column per relation (Fig. 8)."""
    facts = relation_facts(size, per_subject, seed)
    with edit(lab, facts, method).applied():
        report = evaluate(lab, facts, kinds=("rewrite",))
    return report.groupby("relation")["exact"].mean().to_dict()


def batched(lab: Lab, method: str, batch: int, size: int, per_subject: int, seed: int) -> dict[str, float]:
    """The metrics of all facts after they were written ``batch`` at a time, one batch after another (Table 9)."""
    facts = by_density(size, per_subject, seed)
    parts = list(chunks(facts, batch))
    brief = lab_reference(lab, 1)  # nobody reads the health here
    with sequence(lab, parts, method, every=len(parts), reference=brief).applied():
        return evaluate(lab, facts, kinds=KINDS).summary().dropna().to_dict()


def priced(lab: Lab, method: str, size: int, seed: int) -> dict[str, float]:
    """A method's seconds and their ratio to memit's in the same process, as shipped and at equal steps (Table 12)."""
    row = bench_methods(lab, size, (method,), seed=seed).loc[method]
    return {name: float(row[name]) for name in SPENT}
