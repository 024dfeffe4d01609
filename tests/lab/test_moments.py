"""Second moments over processes: the bits of one process."""

import pytest
import torch

from kedit_lab.extract.moments import lab_text, second_moment


def test_processes_give_the_same_bits(lab, tmp_path):
    texts = lab_text(300)
    alone = second_moment(lab, 1, texts, tmp_path / "alone")
    assert torch.equal(second_moment(lab, 1, texts, tmp_path / "two", jobs=2), alone)


def test_an_edited_model_is_not_read_by_workers(lab, tmp_path):
    weight = lab.arch.mlp[0].module.weight
    kept = weight.clone()
    weight.mul_(1.01)
    try:
        with pytest.raises(ValueError, match="loads as another model than the one given"):
            second_moment(lab, 1, lab_text(10), tmp_path, jobs=2)
    finally:
        weight.copy_(kept)
