"""Asks every node of a cluster what it is like; a process of its own, because Ray may end or hang in it.

    python -P -m parl.machine.nodes.probe ADDRESS QUESTION

QUESTION is a JSON object: ``packages``, ``paths``, ``root`` (see ``facts.Node.facts``) and ``ports``. The last
line printed is a JSON list, one object a node.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from parl.machine.nodes import facts

_ANSWER_S = 60.0
_NOTICE_S = 5.0  # between the end of an actor and the entry that its node is lost
_BYTES = 32 * 2**20  # sent from each node to the next
_ASKED = 5  # times that a clock is read; the quickest answer counts


def probe(address: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of the cluster at ``address``, the driver's own first, then by address."""
    import ray
    from ray import cloudpickle
    from ray.exceptions import ActorUnschedulableError, RayActorError

    cloudpickle.register_pickle_by_value(facts)
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    own = ray.get_runtime_context().get_node_id()
    while True:
        alive = sorted((one for one in ray.nodes() if one["Alive"]), key=lambda one: _order(one, own))
        try:
            return _answers(alive, own, question)
        except (RayActorError, ActorUnschedulableError):
            if not _fewer(alive):
                raise


def _fewer(nodes: list[dict[str, Any]]) -> bool:
    """Whether one of ``nodes`` turns out to be lost: Ray takes it for alive up to a minute after its end."""
    import ray

    until = time.monotonic() + _NOTICE_S
    while time.monotonic() < until:
        left = {one["NodeID"] for one in ray.nodes() if one["Alive"]}
        if not {one["NodeID"] for one in nodes} <= left:
            return True
        time.sleep(0.2)
    return False


def _answers(alive: list[dict[str, Any]], own: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    """What the nodes ``alive`` say. TimeoutError with those that say nothing; Ray's error if one is lost meanwhile."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote
    actors = [
        remote(facts.Node)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False))
        .remote()
        for one in alive
    ]
    asked = [actor.facts.remote(question["packages"], question["paths"], question["root"]) for actor in actors]
    _, silent = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
    if silent:
        names = [f"{alive[asked.index(one)]['NodeManagerHostname']}" for one in silent]
        raise TimeoutError(f"no answer within {_ANSWER_S:g} s from {', '.join(names)}")
    found = ray.get(asked, timeout=_ANSWER_S)
    nodes = [
        answer
        | {
            "id": one["NodeID"],
            "address": one["NodeManagerAddress"],
            "own": one["NodeID"] == own,
            "labels": {name: value for name, value in one["Labels"].items() if not name.startswith("ray.io/")},
            "cpus": one["Resources"].get("CPU", 0.0),
            "gpus": one["Resources"].get("GPU", 0.0),
            "clock_off": _clock(actor),
            "to_next": None,
        }
        for one, answer, actor in zip(alive, found, actors, strict=True)
    ]
    for number, (actor, node) in enumerate(zip(actors, nodes, strict=True)):
        if len(nodes) > 1:
            place = (number + 1) % len(nodes)
            node["to_next"] = _speed(actor, actors[place], nodes[place]["address"], question["ports"])
    return nodes


def _order(node: dict[str, Any], own: str) -> tuple[bool, list[int | str]]:
    parts = [int(part) if part.isdigit() else part for part in node["NodeManagerAddress"].split(".")]
    return node["NodeID"] != own, parts


def _clock(actor: Any) -> float:
    """Seconds by which the node's clock is ahead of this one's, from the quickest of some answers."""
    import ray

    best, off = float("inf"), 0.0
    for _ in range(_ASKED):
        before = time.time()
        there: Any = ray.get(actor.clock.remote(), timeout=_ANSWER_S)
        after = time.time()
        if after - before < best:
            best, off = after - before, there - (before + after) / 2
    return off


def _speed(sender: Any, receiver: Any, address: str, ports: list[int]) -> float | str:
    """Bytes a second between two nodes at a port of the range, or what went wrong."""
    import ray

    port = ray.get(receiver.listen.remote(address, *ports), timeout=_ANSWER_S)
    if not port:
        return f"no port of {ports[0]}-{ports[1]} is free at {address}"
    return ray.get(sender.call.remote(address, port, _BYTES), timeout=_ANSWER_S)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(probe(sys.argv[1], json.loads(sys.argv[2]))) + "\n")
