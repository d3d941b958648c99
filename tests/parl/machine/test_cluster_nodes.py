"""Clusters of several machines: which differences end a run, where actors go, and what is sent to the nodes."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import shutil
import socket
import sys
import types
from pathlib import Path

import pytest
import ray
from pydantic import ValidationError
from ray.exceptions import ActorDiedError

from parl.errors import UserError
from parl.machine.nodes import facts, files, place, probe
from parl.machine.nodes.check import NodeFacts, data_paths, refuse, verdict
from parl.machine.nodes.code import own_modules, pack
from parl.machine.nodes.config import ClusterConfig
from parl.own_packages import ROOT

ONE = NodeFacts(
    id="1",
    host="alpha",
    address="10.0.0.1",
    own=True,
    labels={"role": "learner"},
    cpus=2.0,
    gpus=0.0,
    cores=2,
    memory=8 * 2**30,
    room=8 * 2**30,
    python="3.11.7",
    packages={"torch": "2.13.0", "numpy": "2.3.5", "transformers": None},
    code="c0de",
    processor="x86_64 avx2",
    clock_off=0.0,
    to_next=1e9,
    seen=["/data/corpus"],
)


def other(**changes) -> NodeFacts:
    """A second node that differs by ``changes`` alone."""
    return dataclasses.replace(
        ONE, **({"id": "2", "host": "beta", "address": "10.0.0.2", "own": False, "labels": {}} | changes)
    )


def judged(*nodes: NodeFacts, cluster: ClusterConfig | None = None, paths: tuple[str, ...] = ()):
    return verdict([ONE, *nodes], cluster or ClusterConfig(), paths)


def test_like_nodes_pass_without_a_word():
    found = judged(other())
    assert found.problems == [] and found.notes == []
    refuse(found, "head:6379")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"packages": {"torch": "2.12.0", "numpy": "2.3.5"}}, "has torch 2.12.0, alpha has 2.13.0"),
        ({"packages": {"torch": "2.13.0"}}, "has numpy not at all, alpha has 2.3.5"),
        ({"python": "3.12.1"}, "has Python 3.12.1, alpha has 3.11.7"),
        ({"clock_off": -61.5}, "clock is -61.5 s"),
        ({"to_next": "ConnectionRefusedError: refused"}, "does not reach alpha (10.0.0.1)"),
        ({"seen": []}, "/data/corpus is not there"),
    ],
)
def test_a_difference_that_breaks_runs_is_refused_with_the_node_and_the_fix(changes, said):
    found = judged(other(**changes), paths=("/data/corpus",))
    assert len(found.problems) == 1 and said in found.problems[0] and "beta (10.0.0.2)" in found.problems[0]
    with pytest.raises(UserError, match="head:6379 will not do"):
        refuse(found, "head:6379")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": None}, "beta (10.0.0.2) has none of parl's code: it is sent this one's"),
        ({"code": "0ther"}, "has other code of parl"),
        ({"clock_off": 3.0}, "+3.0 s"),
        ({"processor": "x86_64 avx2 avx512f"}, "processors differ"),
        ({"to_next": 2e6}, "2.0 MB/s"),
        ({"room": 10 * 2**20}, "10 MiB free"),
        ({"python": "3.11.9"}, ""),
        ({"packages": {"torch": "2.13.0", "numpy": "2.3.5", "transformers": "5.24.0"}}, ""),
    ],
)
def test_a_difference_that_runs_survive_is_a_note_at_most(changes, said):
    found = judged(other(**changes))
    assert found.problems == []
    assert any(said in note for note in found.notes) if said else not found.notes


def test_only_nodes_of_rollout_workers_must_have_their_files():
    cluster, paths = ClusterConfig(labels={"worker": {"role": "rollout"}}), ("/data/corpus",)
    engine, worker = other(labels={"role": "engine"}, seen=[]), other(labels={"role": "rollout"}, seen=[])
    found = judged(engine, other(labels={"role": "rollout"}), cluster=cluster, paths=paths)
    assert found.problems == [] and "/data/corpus is not there" in found.notes[0]
    (problem,) = judged(worker, cluster=cluster, paths=paths).problems
    assert "leave the node out with cluster.labels.worker" in problem


def test_labels_that_no_node_carries_are_refused_with_those_there_are():
    cluster = ClusterConfig(labels={"engine": {"role": "engin"}, "learner": {"role": "learner"}})
    (problem,) = judged(other(labels={"role": "engine"}), cluster=cluster).problems
    assert "cluster.labels.engine={'role': 'engin'}" in problem and "{'role': 'engine'}" in problem


@pytest.mark.parametrize("given", ["20000", "20000-19999", "80-90", "1024-70000", "a-b"])
def test_a_range_of_ports_that_is_none_is_refused(given):
    with pytest.raises(ValidationError, match="no range of ports"):
        ClusterConfig(ports=given)
    assert ClusterConfig(ports="2000-2001").port_range == (2000, 2001)


def node(name: str, address: str, *, alive: bool = True, **labels: str) -> dict:
    """A node as ``ray.nodes`` gives it."""
    place = {"NodeManagerAddress": address, "NodeManagerHostname": f"host-{name}"}
    return {"NodeID": name, "Alive": alive, "Labels": labels, **place}


def test_actors_take_turns_over_the_nodes_with_their_labels_and_go_elsewhere_without():
    nodes = [node("c", "10.0.0.3", role="engine"), node("a", "10.0.0.1"), node("b", "10.0.0.2", role="engine")]
    assert [place.chosen(nodes, {"role": "engine"}, number) for number in range(3)] == ["b", "c", "b"]
    assert [place.chosen(nodes, {}, number) for number in range(4)] == ["a", "b", "c", "a"]
    nodes[0]["Alive"] = nodes[2]["Alive"] = False
    assert place.chosen(nodes, {"role": "engine"}, 0) == "a"
    assert place.chosen([node("a", "10.0.0.1", alive=False)], {}, 0) is None


def test_a_host_that_lost_an_actor_is_avoided_while_there_are_others():
    nodes = [node("a", "10.0.0.1"), node("b", "10.0.0.2", role="engine")]
    assert place.chosen(nodes, {"role": "engine"}, 0, {"host-b"}) == "a"
    assert place.chosen(nodes[1:], {"role": "engine"}, 0, {"host-b"}) == "b"


def test_on_one_machine_nothing_is_placed():
    with place.joined(place.Cluster(config=ClusterConfig(), nodes=[ONE])):
        assert not place.several() and place.options("engine") == {}
    with place.joined(place.Cluster(config=ClusterConfig(), nodes=[ONE, other()])):
        assert place.several()
    assert not place.several()


def test_the_interface_of_an_address_is_found_and_a_foreign_one_is_an_error():
    assert place.interface("127.0.0.1").startswith("lo")
    with pytest.raises(RuntimeError, match=r"no network interface has the address 192\.0\.2\.77"):
        place.interface("192.0.2.77")


def test_a_meeting_point_is_free_and_within_the_range(monkeypatch):
    import ray

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = place._meeting(place.Ports(port, port + 20))
        assert found.address == "127.0.0.1" and port < found.port <= port + 20
        assert place._meeting(place.Ports(port, port)).port == 0


def test_the_digest_of_code_depends_on_its_bytes_alone(tmp_path: Path):
    pack(tmp_path / "copy", {})
    assert facts.code_digest(str(tmp_path / "copy")) == facts.code_digest(ROOT)
    with (tmp_path / "copy" / "parl" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert facts.code_digest(str(tmp_path / "copy")) != facts.code_digest(ROOT)
    shutil.rmtree(tmp_path / "copy" / "parl")


def test_the_users_modules_are_sent_and_what_is_installed_is_not(tmp_path: Path, monkeypatch):
    (tmp_path / "my_env.py").write_text("X = 1\n")
    (tmp_path / "my_tools").mkdir()
    (tmp_path / "my_tools" / "deep.py").write_text("Y = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    my_env, my_tools = importlib.import_module("my_env"), importlib.import_module("my_tools")
    importlib.import_module("my_tools.deep")

    loaded = {"my_env": my_env, "my_tools": my_tools, "my_tools.deep": my_tools.deep, "pytest": pytest, "json": sys}
    loaded |= {"parl": sys.modules["parl"], "nothing": types.ModuleType("nothing")}
    found = own_modules(loaded)
    assert found == {"my_env": tmp_path / "my_env.py", "my_tools": tmp_path / "my_tools"}
    pack(tmp_path / "sent", found)
    assert (tmp_path / "sent" / "my_env.py").is_file() and (tmp_path / "sent" / "my_tools" / "deep.py").is_file()


def test_a_module_with_data_in_its_folder_is_refused_by_name(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("parl.machine.nodes.code._MOST", 1000)
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "table.bin").write_bytes(bytes(2000))
    with pytest.raises(UserError, match="the module heavy"):
        pack(tmp_path / "sent", {"heavy": tmp_path / "heavy"})


def test_a_carried_folder_is_itself_where_it_is_and_a_copy_where_it_is_not(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "private_folder", lambda: tmp_path / "node")
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))
    sent = pickle.dumps(files.Carried(folder))
    assert len(sent) < 1000 and Path(pickle.loads(sent)) == folder
    (folder / "tokenizer.json").write_text("{ }")  # another host's folder of the same name
    copy = Path(pickle.loads(sent))
    assert copy != folder and (copy / "tokenizer.json").read_text() == "{}"
    shutil.rmtree(folder)
    assert Path(pickle.loads(sent)) == copy and [path.name for path in copy.iterdir()] == ["tokenizer.json"]


def test_the_paths_of_an_environments_section_are_those_that_exist(tmp_path: Path):
    from envs.base import Section

    class Own(Section):
        corpus: Path
        later: Path
        name: str = "x"

    assert data_paths(Own(corpus=tmp_path, later=tmp_path / "not")) == (str(tmp_path),)


class _Ray:
    """Ray's list of nodes, in which a lost node stands for a while; probing it raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
        self.entries, self.asked = entries, []
        monkeypatch.setattr(ray, "init", lambda **_: None)
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(get_node_id=lambda: "own"))
        monkeypatch.setattr(probe, "_answers", self.answers)
        monkeypatch.setattr(probe, "_NOTICE_S", 0.5)

    def nodes(self) -> list[dict[str, object]]:
        self.entries -= 1
        entry = {"NodeManagerAddress": "10.0.0.1"}
        return [{"NodeID": "own", "Alive": True} | entry, {"NodeID": "lost", "Alive": self.entries >= 0} | entry]

    def answers(self, alive: list[dict[str, object]], *_: object) -> list[object]:
        self.asked.append([node["NodeID"] for node in alive])
        if "lost" in self.asked[-1]:
            raise ActorDiedError()
        return ["answer"]


def test_a_node_that_was_lost_just_before_is_left_out_of_the_probe(monkeypatch: pytest.MonkeyPatch):
    cluster = _Ray(monkeypatch, entries=2)
    assert probe.probe("10.0.0.1:6379", {}) == ["answer"]
    assert cluster.asked == [["own", "lost"], ["own"]]


def test_a_node_that_is_there_and_takes_no_actor_is_an_error(monkeypatch: pytest.MonkeyPatch):
    _Ray(monkeypatch, entries=1000)
    with pytest.raises(ActorDiedError):
        probe.probe("10.0.0.1:6379", {})
