"""The message about an actor that Ray killed because memory ran out."""

from __future__ import annotations

import pytest
from ray import exceptions as failures

from parl.machine.faults import said
from parl.machine.watch import Watch, Watched

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1) was \
3.75GB used / 23.54GB limit (0.159440)
OOM kill reason: Memory usage 4030087168B exceeded threshold of 25276516B (0.1% of 25276514304B limit)
Object store memory usage: [- objects spillable: 0
Eviction Stats:
(global lru) num evictions: 0]
Considered workers: [
Selected to kill: ({whom}: job ID=01000000, task name=Learner.__init__, required resources={{}}, pid=12538)
]
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
11019\t0.33\tpython -m parl train
12393\t0.28\tnode index.js
11716\t0.27\tfirefox
11481\t0.21\tbash
Refer to the documentation on how to address the out of memory issue
"""


@pytest.mark.parametrize(("whom", "name"), [("Task", "Learner.__init__"), ("Actor(ad8c32a2)", "learner rank 1")])
def test_what_ray_killed_for_memory_is_named_with_what_used_it(monkeypatch, whom: str, name: str):
    watch = Watch()
    watch._gone["ad8c32a2"] = Watched(handle=None, label="learner rank 1", asynchronous=False, answered=0.0)
    monkeypatch.setattr("parl.machine.faults.WATCH", watch)
    text = said(failures.OutOfMemoryError(KILLED.format(whom=whom)))
    assert text.startswith(f"{name} (pid 12538) is lost: OutOfMemoryError: Ray ended it")
    assert "memory was 3.75GB used / 23.54GB limit, Ray's own limit is 0.1%" in text
    assert (
        "0.33 GB by python -m parl train (pid 11019); 0.28 GB by node index.js (pid 12393); 0.27 GB by firefox" in text
    )
    assert "Eviction" not in text and "bash" not in text
