"""Sweeps on the embedded model: processes and a Dask cluster find what this process finds."""

import pandas as pd
import pytest

import kedit_lab as kl

GRID = {"method": ["memit", "memit-merge"], "size": [2, 3]}
SAME = {"subjects": "same", "prefixes": 0, "steps": 5}
FOUND = ["method", "size", "load", "efficacy", "paraphrase", "specificity"]


@pytest.fixture(scope="module")
def here(lab):
    return kl.sweep(lab, GRID, **SAME)


def test_processes_find_the_same(lab, here, tmp_path):
    found = kl.sweep(lab, GRID, tmp_path / "sweep.jsonl", jobs=2, **SAME)
    pd.testing.assert_frame_equal(found[FOUND], here[FOUND])


def test_a_dask_cluster_finds_the_same(lab, here):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp")
    with cluster, distributed.Client(cluster):
        found = kl.sweep(lab, GRID, jobs=2, backend="dask", **SAME)
    pd.testing.assert_frame_equal(found[FOUND], here[FOUND])


def test_an_edited_model_is_not_sent_to_other_processes(lab):
    with kl.edit(lab, kl.facts.same_subject(1), "memit").applied(), pytest.raises(ValueError, match="another model"):
        kl.sweep(lab, GRID, jobs=2, **SAME)
