"""Models that are spread over devices do what they do on one: seen on a pretend device, in processes of their own."""

import json
import subprocess
import sys

import pytest

from tests.pico.apart import TOOLS

PLACES = {  # lower blocks, upper blocks, where the CPU's would run
    "lower blocks on a device, upper ones and head on the CPU": ("llama", "pretend:0", "cpu", "cpu"),
    "upper blocks and head offloaded to the CPU": ("llama", "pretend:0", "cpu", "pretend:0"),
    "lower blocks offloaded to the CPU": ("gpt2", "cpu", "pretend:0", "pretend:0"),
    "everything offloaded, embedding and head tied": ("qwen2", "cpu", "cpu", "pretend:0"),
}


@pytest.mark.parametrize("places", PLACES)
def test_a_model_on_several_devices_gives_what_it_gives_on_one(places, tmp_path):
    command = [sys.executable, "-m", "tests.pico.apart", *PLACES[places], str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    wrong = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(wrong) == set(TOOLS)
    assert {name: trouble for name, trouble in wrong.items() if trouble} == {}
