"""Grouping by key, block by block: what the matrix of all cosines gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from kedit_lab.edit import groups
from kedit_lab.edit.groups import alike, cosines, joined, near
from kedit_lab.measure import geometry
from kedit_lab.measure.geometry import misalignment

settings.register_profile("algebra", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("algebra")


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "BLOCK", 3)
        yield


def crowded(seed, n, centres, noise):
    """Keys around a few directions, so that clusters touch."""
    draw = torch.Generator().manual_seed(seed)
    around = torch.randn(centres, 6, generator=draw)[torch.randint(centres, (n,), generator=draw)]
    return around + noise * torch.randn(n, 6, generator=draw)


keys = st.builds(
    crowded, st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 6), st.sampled_from([0.1, 0.4, 0.8])
)


@given(keys, st.sampled_from([0.3, 0.6, 0.9, 0.99]))
def test_what_pairs_connect_is_clustered_as_in_the_whole(rows, similarity):
    whole = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=1 - similarity)
    names = whole.fit_predict((1 - cosines(rows)).clamp_min(0).numpy())
    assert alike(joined(rows, similarity)) == alike(names.tolist())


@given(keys, st.sampled_from([-0.5, 0.0, 0.5, 0.9]))
def test_near_pairs(rows, threshold):
    a, b, cosine = near(rows, threshold)
    all_of_them = cosines(rows)
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == {
        (i, j) for i in range(len(rows)) for j in range(i + 1, len(rows)) if all_of_them[i, j] > threshold
    }
    torch.testing.assert_close(cosine, all_of_them[a, b])


def test_nobody_near():
    rows = torch.eye(5)
    assert [len(part) for part in near(rows, 0.5)] == [0, 0, 0]
    assert alike(joined(rows, 0.5)) == [[0], [1], [2], [3], [4]]


def test_misalignment_by_blocks(monkeypatch):
    rows = crowded(1, 20, 4, 0.4), crowded(2, 20, 4, 0.4)
    whole = misalignment(*rows)
    monkeypatch.setattr(geometry, "BLOCK", 3)
    torch.testing.assert_close(misalignment(*rows), whole)
