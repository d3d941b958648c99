"""A swarm's tools over sockets with faults: a small run of ``benchmarks/tools_load.py``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tools_load import compare

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_call_is_lost_and_traces_do_not_depend_on_concurrency():
    line = [sys.executable, "-m", "benchmarks.tools_load", "--serve"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            rows = asyncio.run(compare(24, 6, (1, 8, 100), url))["rows"]
        finally:
            server.kill()
    for row in rows:
        assert row["same"] and row["lost"] == 0 and row["calls"] == 144, row
        assert {"read", "not_found", "rate_limited", "server"} <= row["results"].keys()
