"""Where actors run on a cluster of several machines.

The learner's ranks get a placement group: all of them at once, close together, on nodes with the labels of
``cluster.labels.learner``. Engines and rollout workers take turns over the nodes with their labels, and go to
any other when their node is gone. On one machine Ray decides.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parl.errors import MachineError, UserError
from parl.machine.nodes.check import NodeFacts, matches
from parl.machine.nodes.config import ClusterConfig, Ports, Role

LOOPBACK = "127.0.0.1"
_ROOM_S = 60.0  # until a learner without room is given up
_ANSWER_S = 60.0
_DOUBT_S = 120.0  # Ray takes a minute to call a silent node dead


class Meeting(NamedTuple):
    """Where the learner's ranks meet: an address of rank 0's node."""

    address: str
    port: int


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A joined cluster. ``nodes``: as they were found at the start, the driver's first."""

    config: ClusterConfig
    nodes: Sequence[NodeFacts]
    taken: Counter[str] = field(default_factory=Counter)  # actors of each role so far
    near: set[Role] = field(default_factory=set)  # roles that stay on the driver's node
    doubted: dict[str, float] = field(default_factory=dict)  # host -> when an actor was lost there


_joined: Cluster | None = None


@contextmanager
def joined(cluster: Cluster) -> Iterator[None]:
    """Place the actors that are started inside the block."""
    global _joined
    _joined = cluster if len(cluster.nodes) > 1 else None
    try:
        yield
    finally:
        _joined = None


def several() -> bool:
    """Whether this run has joined a cluster of several machines."""
    return _joined is not None


def keep_near(role: Role) -> None:
    """Let actors of ``role`` run on the driver's node alone from here on."""
    if _joined is not None:
        _joined.near.add(role)


def options(role: Role | None) -> dict[str, Any]:
    """Ray's options for the next actor of ``role``; None: beside the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if _joined is None:
        return {}
    own = ray.get_runtime_context().get_node_id()
    if role is None or role in _joined.near:
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(own, soft=False)}
    since = time.monotonic() - _DOUBT_S
    doubted = {host for host, when in _joined.doubted.items() if when > since}
    node = chosen(ray.nodes(), _joined.config.labels.get(role, {}), _joined.taken[role], doubted)
    _joined.taken[role] += 1
    # with soft=True a raylet that is slow to start a worker would send the actor to another node
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node or own, soft=False)}


def doubt(hosts: Iterable[str]) -> None:
    """Actors were lost on ``hosts``: start none there until Ray knows whether these nodes are alive."""
    if _joined is not None:
        _joined.doubted |= dict.fromkeys(hosts, time.monotonic())


def chosen(
    nodes: Sequence[dict[str, Any]], labels: dict[str, str], number: int, doubted: Collection[str] = ()
) -> str | None:
    """The id of the node for actor ``number``: those with ``labels`` in turn, or else all in turn.

    ``doubted``: hosts that count only if there are no others.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
    alive = [node for node in alive if node["NodeManagerHostname"] not in doubted] or alive
    fitting = [node for node in alive if matches(node.get("Labels", {}), labels)] or alive
    return fitting[number % len(fitting)]["NodeID"] if fitting else None


class Ranks:
    """The places of ``ranks`` learner ranks with ``threads`` CPUs each, and with a GPU each if ``gpu``.

    UserError if the cluster has no room for all of them at once.
    """

    def __init__(self, ranks: int, *, threads: int, gpu: bool) -> None:
        self._group: Any = None
        self.meeting = Meeting(LOOPBACK, _free_port(LOOPBACK))
        if _joined is None:
            return
        from ray.util.placement_group import placement_group

        labels = _joined.config.labels.get("learner", {})
        bundle = {"CPU": float(threads)} | ({"GPU": 1.0} if gpu else {})
        chosen: Any = [labels] * ranks if labels else None
        self._group = placement_group([bundle] * ranks, strategy="PACK", bundle_label_selector=chosen)
        if not self._group.wait(_ROOM_S):
            self.close()
            raise UserError(_no_room(ranks, bundle, labels))
        self.meeting = self._meet(_joined.config.port_range)

    def options(self, rank: int) -> dict[str, Any]:
        """Ray's options for ``rank``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if self._group is None:
            return {}
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)}

    def close(self) -> None:
        """Give the places back."""
        from ray.util.placement_group import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _meet(self, ports: Ports) -> Meeting:
        import ray

        remote: Any = ray.remote
        asked = remote(_meeting).options(num_cpus=0, max_retries=0, **self.options(0)).remote(ports)
        found: Any = ray.get(asked, timeout=_ANSWER_S)
        if not found.port:
            raise MachineError(f"{found.address}: no port of cluster.ports={ports.first}-{ports.last} is free there")
        return found


def _meeting(ports: Ports) -> Meeting:
    """This node's address, and a free port of the range; 0 if none is."""
    import ray

    address = ray.util.get_node_ip_address()
    for port in range(ports.first, ports.last + 1):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return Meeting(address, port)
    return Meeting(address, 0)


def own_address() -> str:
    """The address of this process's node by which Ray knows it."""
    import ray

    return ray.util.get_node_ip_address()


def interface(address: str) -> str:
    """The name of the network interface that has ``address``; RuntimeError if none has."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    raise RuntimeError(f"{socket.gethostname()}: no network interface has the address {address} that Ray uses")


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def _no_room(ranks: int, bundle: dict[str, float], labels: dict[str, str]) -> str:
    import ray

    each = " and ".join(f"{count:g} {name}" for name, count in bundle.items())
    where = f" on nodes with cluster.labels.learner={labels}" if labels else ""
    fitting = [node for node in ray.nodes() if node["Alive"] and matches(node.get("Labels", {}), labels)]
    owned = [(node["NodeManagerHostname"], node["Resources"]) for node in fitting]
    there = "; ".join(f"{host}: {has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU" for host, has in owned)
    return (
        f"the cluster has no room for trainer.ranks={ranks} with {each} each{where} ({there or 'no such node'}, some"
        " of it perhaps in use): lower trainer.ranks or trainer.threads, or add nodes"
    )
