"""Whether the machines of a cluster will do: the differences that end a run, and those worth a note."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from parl.errors import UserError
from parl.machine.nodes import facts
from parl.machine.nodes.config import ClusterConfig
from parl.own_packages import ROOT

PACKAGES = (
    "ray",
    "torch",
    "numpy",
    "ml_dtypes",
    "pydantic",
    "safetensors",
    "tokenizers",
    "transformers",
    "httpx",
    "starlette",
)
LEARNERS = ("deepspeed",)
_JOIN_S = 150.0  # a node that was lost just before is waited for until Ray has noticed
_CLOCK_OFF_S = 30.0  # beyond it certificates, tokens and logs are wrong
_CLOCK_NOTE_S = 1.0
_SLOW = 10e6  # bytes a second between two nodes
_ROOM = 2**30  # bytes free for temporary files


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node. ``clock_off``: seconds ahead of the driver's; ``to_next``: bytes a second, or an error's text."""

    id: str
    host: str
    address: str
    own: bool
    labels: dict[str, str]
    cpus: float
    gpus: float
    cores: int
    memory: int
    room: int
    python: str
    packages: dict[str, str | None]
    code: str | None
    processor: str
    clock_off: float
    to_next: float | str | None
    seen: list[str]

    @property
    def name(self) -> str:
        """Host name and address."""
        return f"{self.host} ({self.address})"

    @classmethod
    def read(cls, text: str) -> list[NodeFacts]:
        """From the probe's last line."""
        names = {field.name for field in fields(cls)}
        return [cls(**{name: value for name, value in node.items() if name in names}) for node in json.loads(text)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``problems`` end a run; ``notes`` do not."""

    problems: list[str]
    notes: list[str]


@functools.cache
def ask(address: str, cluster_ports: tuple[int, int], paths: tuple[str, ...] = ()) -> tuple[NodeFacts, ...]:
    """The nodes of the cluster at ``address``. UserError if no cluster takes this process there.

    Ray waits for a minute, then ends the process: therefore another process asks.
    """
    patience = {
        f"RAY_{name}": "10" for name in ("gcs_rpc_server_reconnect_timeout_s", "gcs_server_request_timeout_seconds")
    }
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    question = {"packages": [*PACKAGES, *LEARNERS], "paths": paths, "root": ROOT, "ports": cluster_ports}
    command = [sys.executable, "-P", "-m", "parl.machine.nodes.probe", address, json.dumps(question)]
    environment = os.environ | patience | {"PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_JOIN_S)
    except subprocess.TimeoutExpired:
        said = f"no answer within {_JOIN_S:g} s"
    else:
        if done.returncode == 0:
            return tuple(NodeFacts.read(done.stdout.strip().splitlines()[-1]))
        said = " ".join(done.stderr.strip().splitlines()[-1:])
    raise UserError(
        f"RAY_ADDRESS={address}: what answers there is no Ray cluster that takes this run ({said[:400]}); for a"
        " token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; or correct the address, or unset it to train here"
    )


def verdict(nodes: Sequence[NodeFacts], cluster: ClusterConfig, paths: Sequence[str] = ()) -> Verdict:
    """The differences between ``nodes``, the driver's own being the first; ``paths``: files that all need."""
    own = nodes[0]
    problems, notes = [], []
    for node in nodes[1:]:
        problems += _versions(node, own)
        if abs(node.clock_off) > _CLOCK_OFF_S:
            problems.append(f"{node.name}: its clock is {node.clock_off:+.1f} s from this one's: set it, e.g. by NTP")
        elif abs(node.clock_off) > _CLOCK_NOTE_S:
            notes.append(f"{node.name}: its clock is {node.clock_off:+.1f} s from this one's")
        if lacking := [path for path in paths if path in own.seen and path not in node.seen]:
            lacks = f"{node.name}: {lacking[0]} is not there, and rollout workers read it"
            if matches(node.labels, cluster.labels.get("worker", {})):
                problems.append(f"{lacks}: copy it to the same place, or leave the node out with cluster.labels.worker")
            else:  # they come here only if all of their own nodes are lost
                notes.append(f"{lacks}: by cluster.labels.worker none runs there")
        if node.code != own.code:
            what = "has none of parl's code" if node.code is None else "has other code of parl"
            notes.append(f"{node.name} {what}: it is sent this one's")
    for node, following in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        if isinstance(node.to_next, str):
            problems.append(
                f"{node.name} does not reach {following.name} at a port of cluster.ports={cluster.ports}"
                f" ({node.to_next}): let them through, or take another range"
            )
        elif node.to_next is not None and node.to_next < _SLOW:
            notes.append(f"{node.name} sends {node.to_next / 1e6:.1f} MB/s to {following.name}: weights travel there")
    notes += _differing(nodes, "processor", "rounds differently on each: results depend on which node computes")
    notes += [f"{one.name}: {one.room / 2**20:.0f} MiB free for temporary files" for one in nodes if one.room < _ROOM]
    for role, wanted in cluster.labels.items():
        if not any(matches(node.labels, wanted) for node in nodes):
            there = "; ".join(f"{node.name} {node.labels or 'has none'}" for node in nodes)
            problems.append(f"cluster.labels.{role}={wanted}: no node carries these labels ({there})")
    return Verdict(problems=problems, notes=notes)


def matches(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether a node with ``labels`` is one of those that are ``wanted``."""
    return all(labels.get(name) == value for name, value in wanted.items())


def _versions(node: NodeFacts, own: NodeFacts) -> list[str]:
    """What of ``node`` has another version than the driver's."""
    if node.python.split(".")[:2] != own.python.split(".")[:2]:
        return [f"{node.name} has Python {node.python}, {own.host} has {own.python}: install the same minor version"]
    wrong = [name for name, mine in own.packages.items() if mine and node.packages.get(name) != mine]
    return [
        f"{node.name} has {name} {node.packages.get(name) or 'not at all'}, {own.host} has {own.packages[name]}:"
        " install the same there, or start its Ray from the same environment"
        for name in wanted(wrong)
    ]


def wanted(names: Iterable[str]) -> list[str]:
    """Those in the order of the lists above."""
    order = [*PACKAGES, *LEARNERS]
    return sorted(names, key=order.index)


def _differing(nodes: Sequence[NodeFacts], field: str, what: str) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        kinds.setdefault(getattr(node, field), []).append(node.host)
    if len(kinds) < 2:
        return []
    return [f"{field}s differ ({'; '.join(f'{kind}: ' + ', '.join(at) for kind, at in kinds.items())}): it {what}"]


def refuse(found: Verdict, address: str) -> None:
    """UserError with all problems, if there are any."""
    if found.problems:
        raise UserError(f"the cluster at {address} will not do: " + "; ".join(found.problems))


def table(nodes: Sequence[NodeFacts], show: Callable[[str], Any]) -> None:
    """Show one line a node."""
    for node in nodes:
        speed = f"{node.to_next / 1e6:.0f} MB/s to the next" if isinstance(node.to_next, float) else "-"
        labels = " ".join(f"{name}={value}" for name, value in sorted(node.labels.items())) or "no labels"
        show(
            f"{node.name}{' (this one)' if node.own else ''}: {node.cpus:g} CPUs, {node.gpus:g} GPUs,"
            f" {node.memory / 2**30:.0f} GiB, {labels}; Python {node.python},"
            f" torch {node.packages.get('torch')}, ray {node.packages.get('ray')}, code {node.code or 'none'};"
            f" clock {node.clock_off * 1e3:+.0f} ms; {speed}"
        )


def code_here() -> str | None:
    """The digest of the code that this process runs."""
    return facts.code_digest(ROOT)


def data_paths(section: Any) -> tuple[str, ...]:
    """The absolute paths in the fields of a pydantic ``section`` that exist here: rollout workers need them."""
    values = section.model_dump(mode="python").values() if hasattr(section, "model_dump") else ()
    found = [value for value in values if isinstance(value, Path) and value.exists()]
    return tuple(str(path.absolute()) for path in found)
