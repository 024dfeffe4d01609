"""Results of joblib's workers: in order, as they come, whatever the backend can do; and chance of one's own."""

import time
from contextlib import nullcontext

import pytest
import torch
from joblib import delayed, register_parallel_backend
from joblib._parallel_backends import ThreadingBackend
from joblib.parallel import get_active_backend

from kedit_lab.model import process
from kedit_lab.model.process import own_chance, results


class Lists(ThreadingBackend):
    """A backend without generators, as "multiprocessing" is, and Ray's, which is made of it."""

    supports_return_generator = False


register_parallel_backend("lists", Lists)


@pytest.mark.parametrize("backend", ["threading", "lists"])
@pytest.mark.parametrize("ordered", [True, False])
def test_every_result_comes(backend, ordered):
    found = list(results((delayed(abs)(number) for number in range(-40, 0)), 2, backend, ordered))
    assert sorted(found) == list(range(1, 41))
    assert not ordered or found == list(range(40, 0, -1))


def test_lists_come_while_work_is_left():
    begun = []
    found = results((begun.append(number) or delayed(abs)(number) for number in range(40)), 2, "lists")
    assert next(found) == 0
    assert len(begun) == 8


@pytest.mark.parametrize("backend", ["threading", "lists"])
def test_the_backend_is_not_left_to_others(backend):
    """What uses joblib between two results uses its own backend."""
    before = type(get_active_backend()[0])
    found = results((delayed(abs)(number) for number in range(9)), 2, backend)
    next(found)
    assert type(get_active_backend()[0]) is before
    assert list(found) == list(range(1, 9))


def test_errors_come_through():
    with pytest.raises(ZeroDivisionError):
        list(results((delayed(divmod)(1, number) for number in (1, 0)), 2, "lists"))
    with pytest.raises(ValueError, match="nonsense"):
        list(results([], 2, "nonsense"))


@pytest.mark.parametrize("backend", ["threading", "lists"])
def test_who_has_enough_may_go(backend):
    """joblib warns of calls in vain; here warnings are errors."""
    found = results((delayed(abs)(number) for number in range(40)), 2, backend)
    assert next(found) == 0
    found.close()


def test_chance_inside_leaves_the_outside_as_it_was():
    before = torch.get_rng_state()
    with own_chance():
        torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_several_devices_are_named_with_their_kind(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    named = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda **told: named.append(told) or nullcontext())
    with own_chance():
        assert named == [{"devices": range(2), "device_type": "xpu"}]


def test_threads_of_a_worker_take_turns(monkeypatch):
    """Two at one model would hook and edit it at once."""
    inside, most, source = [], [], process.Source("a model", "", "float32", "cpu", False)
    monkeypatch.setattr(process, "loaded", lambda source: source)

    def work(_):
        with process.worker(source, torch.get_num_threads()) as lab:
            inside.append(lab)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
        return lab

    assert list(results((delayed(work)(i) for i in range(8)), 4, "threading")) == [source] * 8
    assert max(most) == 1
