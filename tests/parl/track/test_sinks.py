"""TensorBoard and Prometheus, read back through their own libraries; a clear error without them."""

from __future__ import annotations

import importlib.util
import socket

import httpx
import pytest

from parl.config.schema import TrackingConfig
from parl.errors import UserError
from parl.track.sinks import check_sinks
from parl.track.tracker import Tracker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def config(**tracking) -> TrackingConfig:
    return TrackingConfig(wandb="disabled", **tracking)


def test_tensorboard_reads_every_finite_number_back(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = Tracker(tmp_path, config(tensorboard=True))
    tracker.log(1, {"reward/total": 0.25, "speed/odd": float("nan")})
    tracker.log(2, {"reward/total": 0.5})
    tracker.finish()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward/total")] == [(1, 0.25), (2, 0.5)]
    assert "train/speed/odd" not in events.Tags()["scalars"]


def test_prometheus_serves_the_newest_numbers_of_all_runs_of_the_process(tmp_path):
    pytest.importorskip("prometheus_client")
    port = free_port()
    for name in ("one", "two"):
        tracker = Tracker(tmp_path / name, config(prometheus_port=port))
        tracker.log(1, {"reward/total": 0.25})
        tracker.log(2, {"reward/total": 0.5})
        tracker.finish()
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'parl{name="train/reward/total",run="one"} 0.5' in text and 'parl{name="step",run="two"} 2.0' in text


def test_a_port_that_is_taken_is_named(tmp_path):
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"prometheus_port={port} cannot be opened"):
            Tracker(tmp_path, config(prometheus_port=port))


def test_a_missing_library_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for settings, library in (({"tensorboard": True}, "tensorboard"), ({"prometheus_port": 9000}, "prometheus-client")):
        with pytest.raises(UserError, match=f"pip install {library},"):
            check_sinks(TrackingConfig(**settings))
