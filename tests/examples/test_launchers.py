"""The launchers' examples: linted, and run against stand-ins for the launchers' programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCHERS = ROOT / "examples" / "launchers"
SLURM = LAUNCHERS / "slurm.sh"
_START = "ray.scripts.scripts start"


def start_options() -> set[str]:
    """The options of the installed Ray's ``ray start``."""
    from ray.scripts.scripts import start

    return {name for option in start.params for name in option.opts}


def parl_refuses(arguments: list[str], folder: Path) -> str:
    """What ``parl`` says against a command line; empty if it is valid (checked without starting anything)."""
    if arguments[:2] == ["cluster", "check"]:
        from parl.cli.cluster import check

        known = {"--nodes", "--config"}
        assert {one for one in arguments if one.startswith("--")} <= known and check.__doc__
        return ""
    assert arguments[0] == "train", arguments
    given = [one for one in arguments if not one.startswith("cluster.address=")]  # it would be joined
    command = [sys.executable, "-m", "parl", *given, "--dry-run"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCHERS / name).read_text()))


def test_the_script_for_slurm_has_no_mistakes_that_a_linter_finds():
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM], check=True)


@pytest.fixture
def slurm(tmp_path: Path):
    """Runs the script in a job of three nodes; the commands of ``srun`` with where they ran, and the exit code."""
    said = tmp_path / "said.jsonl"
    record = f"""#!{sys.executable}
import json, os, subprocess, sys, time
given = sys.argv[1:]
cut = next(place for place, one in enumerate(given) if not one.startswith("--"))
options = dict(one.lstrip("-").partition("=")[::2] for one in given[:cut])
command = given[cut:]
with open({str(said)!r}, "a") as out:
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    out.write(json.dumps({{"options": options, "command": command, "token": token}}) + "\\n")
if command[0] == "hostname":
    print("192.0.2.1 fe80::1")
if "train" in command:
    if "slow" in command:
        import signal
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
        os.kill(os.getppid(), signal.SIGTERM)  # the job's time is over, which SLURM tells the script
        while not told:
            time.sleep(0.01)
        time.sleep(0.5)
        open({str(tmp_path / "saved")!r}, "w").close()
    sys.exit(int(os.environ["CODE"]))
"""
    programs = {"srun": record, "scontrol": '#!/bin/sh\n[ "$3" = "n[1-3]" ] && printf "n1\\nn2\\nn3\\n"\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], int]:
        job = {"SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_ON_NODE": "8"}
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PARL_PYTHON": sys.executable, "CODE": str(code)}
        done = subprocess.run(["bash", SLURM, *arguments], env=os.environ | job | path, timeout=120)
        return [json.loads(line) for line in said.read_text().splitlines()], done.returncode

    return run


def test_slurm_starts_ray_on_every_node_checks_them_and_trains_on_the_first(slurm, tmp_path: Path):
    calls, code = slurm(str(ROOT / "configs" / "quickstart.yaml"), "trainer.ranks=2")
    assert code == 0
    joined = {" ".join(call["command"][1:]): call for call in calls}
    (head,) = [call for text, call in joined.items() if _START in text and "--head" in text]
    (rest,) = [call for text, call in joined.items() if _START in text and "--address=192.0.2.1:6379" in text]
    assert head["options"]["nodelist"] == "n1" and "--node-ip-address=192.0.2.1" in head["command"]
    assert rest["options"] | {"exclude": "n1", "nodes": "2", "ntasks": "2"} == rest["options"]
    for call in (head, rest):
        options = {one.partition("=")[0] for one in call["command"] if one.startswith("--")}
        assert options <= start_options() and "--num-cpus=8" in call["command"] and "--block" in call["command"]
        assert len(call["token"]) == 64 and call["token"] == head["token"]
    on_head = [call for call in calls if call["command"][1:3] == ["-m", "parl"]]
    assert [call["command"][3] for call in on_head] == ["cluster", "train"]
    assert all(call["options"]["nodelist"] == "n1" for call in on_head)
    assert on_head[0]["command"][3:] == ["cluster", "check", "192.0.2.1:6379", "--nodes", "3"]
    assert on_head[1]["command"][-1] == "cluster.address=192.0.2.1:6379"
    assert not parl_refuses(on_head[1]["command"][3:], tmp_path)


def test_slurm_ends_with_the_runs_exit_code(slurm):
    assert slurm("configs/quickstart.yaml", code=1)[1] == 1


def test_slurm_waits_at_the_end_of_the_jobs_time_until_the_driver_has_saved(slurm, tmp_path: Path):
    assert slurm("configs/quickstart.yaml", "slow", code=130)[1] == 130
    assert (tmp_path / "saved").exists()


def test_the_cluster_for_ray_up_is_valid_for_the_installed_ray():
    from ray.autoscaler._private.util import prepare_config, validate_config

    (given,) = documents("ray_up.yaml")
    validate_config(prepare_config(given))
    with pytest.raises(Exception, match="worker_start_ray_command"):  # the schema is strict
        validate_config(prepare_config(given | {"worker_start_ray_command": []}))
    for command in (given["head_start_ray_commands"][-1], given["worker_start_ray_commands"][-1]):
        assert set(re.findall(r"--[a-z-]+", command)) <= start_options()


def test_the_command_in_the_head_of_ray_up_trains(tmp_path: Path):
    text = (LAUNCHERS / "ray_up.yaml").read_text()
    (command,) = re.findall(r"parl (train [^\"]+)\"", text)
    assert not parl_refuses(command.replace("configs/", f"{ROOT}/configs/").split(), tmp_path)


def test_the_job_for_kuberay_starts_what_the_installed_ray_and_parl_know(tmp_path: Path):
    job, claim = documents("kuberay.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert {f"--{name}" for name in group["rayStartParams"]} <= start_options()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}
        assert float(container["resources"]["limits"]["cpu"]) >= float(group["rayStartParams"]["num-cpus"])
    claims = [volume.get("persistentVolumeClaim") for volume in groups[0]["template"]["spec"]["volumes"]]
    assert {"claimName": claim["metadata"]["name"]} in claims
    assert cluster["authOptions"] == {"mode": "token"}
    nodes = 1 + sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    check, train = re.findall(r"parl ([a-z][^&\"]+)", job["spec"]["entrypoint"])
    assert f"--nodes {nodes}" in check and not parl_refuses(check.split(), tmp_path)
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path / "run.yaml")
    assert not parl_refuses(train.replace("/config/", f"{tmp_path}/").split(), tmp_path)


def test_a_wrong_command_would_be_noticed(tmp_path: Path):
    wrong = ["train", str(ROOT / "configs" / "quickstart.yaml"), "trainer.rank=2"]
    assert "trainer.rank" in parl_refuses(wrong, tmp_path)
