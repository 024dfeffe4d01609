"""A file of CounterFact's size: 45 MB are read under 300 MB, in a small multiple of what its JSON alone takes.

On an idle core that is 1.7 s, 2.6 times the JSON; on a shared one the same JSON took from 0.36 to 1.05 s, and the
multiple went from 2.2 to 6.9. The bound is for a reader that does not grow in proportion to the file.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RECORDS, BYTES, TIMES, MEGABYTES = 22_000, 45_000_000, 20, 300
# The better of two readings: the first one of a process also pays for fresh memory.
SCRIPT = """
import json, sys, time
import psutil
import kedit_lab as kl
before = psutil.Process().memory_info().rss
def seconds(read):
    start = time.process_time()
    found = read(sys.argv[1])
    return time.process_time() - start, len(found)
plain = min(seconds(lambda path: json.load(open(path, encoding="utf-8")))[0] for _ in range(2))
taken, facts = min(seconds(kl.facts.counterfact) for _ in range(2))
print(json.dumps({"facts": facts, "times": taken / plain, "before": before}))
"""


def counterfact_row(i):
    """An invented record with as many prompts as a real one has."""
    subject, words = f"Subject {i:05d} Núñez", f"saw lamp {i:05d} in the harbour"
    asked = {"prompt": "The colour of {} is", "relation_id": f"P{i % 34}", "subject": subject}
    objects = {"target_new": {"str": f"red {i % 600}", "id": "Q1"}, "target_true": {"str": "blue", "id": "Q2"}}
    return {
        "case_id": i,
        "pararel_idx": i,
        "requested_rewrite": asked | objects,
        "paraphrase_prompts": [f"They {words} night {n}. {subject} is coloured" for n in range(2)],
        "neighborhood_prompts": [f"Neighbour {n} {words} day {n}" for n in range(10)],
        "attribute_prompts": [f"Attribute {n} {words} noon {n}" for n in range(10)],
        "generation_prompts": [f"{subject} {words} {n % 3}" for n in range(10)],
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "counterfact.json"
    path.write_text(json.dumps([counterfact_row(i) for i in range(RECORDS)], indent=1), encoding="utf-8")
    assert path.stat().st_size >= BYTES
    return path


def test_a_large_file(large):
    """The process is looked at from outside: on Linux its own record of its peak begins with that of its parent."""
    environment, peak = os.environ | {"PYTHONPATH": str(ROOT)}, 0
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(large)], env=environment, stdout=subprocess.PIPE
    ) as reader:
        while reader.poll() is None:
            peak = max(peak, resident(reader.pid))
            time.sleep(0.005)
        found = json.load(reader.stdout)
    assert found["facts"] == RECORDS
    assert found["times"] < TIMES
    assert (peak - found["before"]) / 1e6 < MEGABYTES


def resident(pid):
    """Bytes in memory of a process, 0 once it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0
