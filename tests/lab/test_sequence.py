"""Ten batches of twenty facts in sequence on the lab model: what is kept, and what memory and merging change."""

import pytest

import kedit_lab as kl


@pytest.fixture(scope="module")
def batches():
    facts = kl.facts.by_density(200)
    return [facts[i : i + 20] for i in range(0, 200, 20)]


@pytest.fixture(scope="module")
def runs(lab, batches):
    return {
        "memit": kl.sequence(lab, batches, "memit", every=5),
        "alphaedit": kl.sequence(lab, batches, "alphaedit", every=10),
        "memit + merge": kl.sequence(lab, batches, "memit", merge=kl.Merge(), every=10),
    }


def test_alphaedit_keeps_nearly_all(runs):
    assert runs["alphaedit"].matrix().loc[10].mean() >= 0.90


def test_memit_hardly_forgets_here(runs):
    """Unlike in the papers: 200 distinct facts do not crowd 768 key dimensions, with or without merging."""
    for name in ("memit", "memit + merge"):
        assert runs[name].matrix().loc[10].mean() >= 0.90
    assert runs["memit"].matrix().loc[10].mean() <= runs["alphaedit"].matrix().loc[10].mean() + 0.02


def test_merging_drops_most_entries_of_each_step(runs):
    for before, after in zip(runs["memit + merge"].states, runs["memit + merge"].states[1:], strict=False):
        for name in after:
            assert (before[name] != after[name]).float().mean() <= 0.16


def test_health_is_told(runs, lab):
    for run in runs.values():
        assert len(run.health) == 10
        assert run.health["finite"].all()
        assert run.health["kl"].iloc[-1] > run.health["kl"].iloc[0] > 0
    assert lab.fingerprint() == kl.load().fingerprint()


def test_related_knowledge_perturbs(lab):
    """S2RKE's settings: density costs a batch its efficacy; a later edit of its subject costs the first one."""
    dense = kl.density_study(lab, 12, densities=(1, 3), modes=("batch",), seeds=(0, 1))
    mean = dense.groupby("density")["efficacy"].mean()
    assert mean[1] >= 0.95
    assert mean[3] <= mean[1] - 0.3
    pairs = kl.pair_study(lab, 3, seeds=range(8), modes=("batch",))
    assert len(pairs) == 16
    first = pairs.groupby("homogeneous")["efficacy"].mean()
    assert first[True] <= first[False] - 0.2
    sequential = kl.pair_study(lab, 2, seeds=(0,))
    assert sequential["mode"].eq("sequential").all()
    assert set(sequential["homogeneous"]) == {True, False}
    both = kl.subject_study(lab, 3, seeds=(0,), modes=("batch",), metric="efficacy")
    assert (both["sd"] < 0).all()
    with pytest.raises(ValueError, match="mode is 'both'; choose one of batch, sequential"):
        kl.density_study(lab, 3, modes=("both",))
