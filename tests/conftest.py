"""For every test: shapes are checked, threads are few, the network is not asked; and the lab, loaded once."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch
from hypothesis import settings

if "kedit_lab" in sys.modules:
    raise RuntimeError("kedit_lab was imported before its shape checks could be installed; see tests/conftest.py")
settings.register_profile("algebra", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("algebra")
jaxtyping.install_import_hook("kedit_lab", "beartype.beartype")

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def lab():
    """The embedded model. Tests that edit it must undo the edit."""
    import kedit_lab as kl

    return kl.load()
