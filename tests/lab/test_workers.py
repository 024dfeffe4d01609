"""Sweeps and second moments in other processes, here or on a Dask or Ray cluster: what this process finds."""

import pandas as pd
import pytest
import torch

import kedit_lab as kl
from kedit_lab.extract import running
from kedit_lab.extract.moments import lab_text

GRID = {"method": ["memit", "memit-merge"], "size": [2]}
SAME = {"subjects": "same", "prefixes": 0, "steps": 3}
FOUND = ["method", "size", "load", "efficacy", "paraphrase", "specificity"]
TEXTS = lab_text(40)
JOBS = {"loky": 2, "dask": 4, "ray": 2}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(running, "PIECE", 8)


@pytest.fixture(scope="module")
def swept(lab):
    return kl.sweep(lab, GRID, **SAME)


@pytest.fixture
def moment(lab, tmp_path):
    return kl.second_moment(lab, 1, TEXTS, tmp_path / "here")


@pytest.fixture(scope="module")
def dask():
    distributed = pytest.importorskip("distributed")
    # two threads of a worker are at one model, as Dask has it by default where there are many cores
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, protocol="tcp")
    with cluster, distributed.Client(cluster):
        yield "dask"


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield "ray"
    finally:
        ray.shutdown()


@pytest.fixture(params=["loky", "dask", "ray"])
def backend(request):
    return request.param if request.param == "loky" else request.getfixturevalue(request.param)


def test_a_sweep_finds_the_same(lab, swept, tmp_path, backend):
    found = kl.sweep(lab, GRID, tmp_path / "sweep.jsonl", jobs=JOBS[backend], backend=backend, **SAME)
    pd.testing.assert_frame_equal(found[FOUND], swept[FOUND])


def test_a_second_moment_has_the_same_bits(lab, moment, tmp_path, backend):
    assert torch.equal(kl.second_moment(lab, 1, TEXTS, tmp_path, jobs=JOBS[backend], backend=backend), moment)


def test_an_edited_model_is_not_read_by_workers(lab, tmp_path):
    """What they load is not what was asked about, and they say so."""
    weight = lab.arch.mlp[0].module.weight
    kept = weight.clone()
    weight.mul_(1.01)
    try:
        with pytest.raises(ValueError, match="loads as another model than the one given"):
            kl.second_moment(lab, 1, TEXTS, tmp_path, jobs=2)
    finally:
        weight.copy_(kept)
