"""Labs around random models: one for each architecture, built once."""

import pytest
import torch

from tests.pico.tiny import KINDS, build, byte_level


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="session")
def make(tokenizer):
    """make(name): the lab of an architecture; nobody may change it."""
    from kedit_lab.model.lab import make_lab

    labs = {}

    def get(name):
        if name not in labs:
            labs[name] = make_lab(build(KINDS[name].config), tokenizer, name)
        return labs[name]

    return get


@pytest.fixture(params=KINDS)
def kind(request):
    """The name of an architecture."""
    return request.param


@pytest.fixture
def pico(make, kind):
    """The lab of an architecture."""
    return make(kind)
