"""The router's vote, its closed form, and what its decisions do not depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.edit.router import Router

EDITED = ("John Smith's employer is", "Mary Jones's native language is", "The capital of Harmark is")
UNRELATED = ("The rain stopped before noon", "A recipe for soup needs salt", "John plays chess on Sundays")


def embedder(seed, scale=1.0):
    """Random rows, the same for the same text."""

    def embed(texts):
        return np.stack([scale * np.random.default_rng([seed, *text.encode()]).normal(size=6) for text in texts])

    return embed


@given(st.integers(0, 1000), st.integers(1, 6))
def test_closed_form_minimises_the_weighted_loss(seed, k):
    """The logit of the edited share is where Σ β BCE(s, l) is least."""
    router = Router.of(EDITED, UNRELATED, embedder(seed), k)
    decision = router.route("Where is Harmark?")
    votes = decision.votes
    assert len(votes) == k
    np.testing.assert_allclose(votes["beta"], np.exp(1 + votes["cosine"]))
    assert decision.edited == (float((votes["beta"] * votes["label"]).sum()) >= 0)
    if not np.isfinite(decision.score):
        assert votes["label"].nunique() == 1
        return

    def loss(s):
        p = 1 / (1 + np.exp(-s))
        return float((votes["beta"] * np.where(votes["label"] > 0, -np.log(p), -np.log(1 - p))).sum())

    assert loss(decision.score) <= min(loss(decision.score + d) for d in (-0.3, -0.01, 0.01, 0.3))


@given(st.integers(0, 1000))
def test_two_vote_like_one(seed):
    """The larger β wins or both agree (fact sheet, invariant 26)."""
    texts = ["Where is Harmark?", "Soup needs salt", "Mary Jones speaks", "chess"]
    one, two = (Router.of(EDITED, UNRELATED, embedder(seed), k) for k in (1, 2))
    assert one.decide(texts).tolist() == two.decide(texts).tolist()


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scale_of_embeddings_does_not_matter(seed, scale):
    a, b = (Router.of(EDITED, UNRELATED, embedder(seed, s), 3) for s in (1.0, scale))
    assert a.route("Where is Harmark?").edited == b.route("Where is Harmark?").edited


def test_prompts_of_the_corpus_come_home():
    for k in (1, 2):
        router = Router.of(EDITED, UNRELATED, k=k)
        assert router.decide(EDITED).all()
        assert not router.decide(UNRELATED).any()
    paraphrase = router.route("The employer of John Smith is")
    assert paraphrase.edited
    assert paraphrase.votes["prompt"].iloc[0] == EDITED[0]
    assert "John Smith's employer is" in str(paraphrase)
    assert str(paraphrase).startswith("edited model")


def test_ties_are_edited_and_all_edited_is_always_edited():
    assert Router.of(("the same prompt",), ("the same prompt",)).route("the same prompt").edited
    assert Router.of(EDITED, ()).decide(["anything at all", "zzz"]).all()


def test_bad_input():
    with pytest.raises(ValueError, match="no edited prompts given"):
        Router.of((), UNRELATED)
    with pytest.raises(ValueError, match="k is 0; at least one prompt must vote"):
        Router.of(EDITED, UNRELATED, k=0)
