"""Causal tracing and interchange on tiny random models: shapes, identities, errors; the findings are in tests/lab."""

import pytest
import torch

from kedit_lab.extract.trace import interchange, trace
from kedit_lab.model.tokens import encode, target_ids
from kedit_lab.types import Fact


def facts(first: str, second: str) -> tuple[Fact, Fact]:
    return (
        Fact("John Smith", "{}'s employer is", second, target_true=first),
        Fact("Maria Papadis Long", "{}'s employer is", first, target_true=second),
    )


def test_trace_covers_every_layer_and_token(pico):
    fact, _ = facts("red", "blue")
    table = trace(pico, fact, samples=3)
    tokens = len(pico.tokenizer(fact.text)["input_ids"])
    assert len(table) == pico.arch.layers * tokens
    assert table["restored"].between(0, 1).all()
    assert table["is_subject"].any()
    assert not table["is_subject"].all()


def test_restoring_everything_that_matters_gives_the_clean_answer(pico):
    """At the last layer only the last token's state reaches the answer, so restoring it there undoes all noise."""
    fact, _ = facts("red", "blue")
    table = trace(pico, fact, samples=3)
    last = table[(table["layer"] == pico.arch.layers - 1) & (table["position"] == table["position"].max())]
    assert last["restored"].item() == pytest.approx(last["clean"].item(), rel=1e-3)
    others = table[(table["layer"] == pico.arch.layers - 1) & (table["position"] < table["position"].max())]
    assert (others["restored"] - others["corrupted"]).abs().max() < 1e-4


@pytest.fixture
def pair(pico):
    """Two facts whose answers begin with different tokens of the tiny vocabulary."""
    words = ["native", "language", "Smith", "John", "is", "Greek", "the", "of"]
    first = {target_ids(pico.tokenizer, word)[0]: word for word in words}
    assert len(first) > 1
    return facts(*list(first.values())[:2])


def test_interchange_behind_the_last_block_decides_at_the_last_token_only(pico, pair):
    """The last token's final state is the answer; the subject's no longer reaches it."""
    last = pico.arch.layers - 1
    with torch.no_grad():
        said = [
            int(pico.arch.logits(pico.hidden(**pico.batch([encode(pico.tokenizer, fact.text)[0]]))[0, -1]).argmax())
            for fact in pair
        ]
    wanted = [target_ids(pico.tokenizer, fact.target_true)[0] for fact in pair]
    moved = interchange(pico, [pair], token="last").set_index("layer").loc[last]
    stayed = interchange(pico, [pair]).set_index("layer").loc[last]
    assert (moved["flipped"], moved["kept"]) == (said[1] == wanted[1], said[1] == wanted[0])
    assert (stayed["flipped"], stayed["kept"]) == (said[0] == wanted[1], said[0] == wanted[0])


def test_pairs_with_one_answer_are_refused(pico):
    same = facts("red", "blue")[0]
    with pytest.raises(ValueError, match="begin with the same token"):
        interchange(pico, [(same, same)])
