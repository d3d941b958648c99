"""A learner rank's process: its threads, its device, and the ranks' meeting point.

A rank on a GPU sees that GPU alone, which Ray gives it. Tensors of the host travel over gloo, those of GPUs
over nccl.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import HashStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from parl.learn.config import Device
from parl.machine.nodes.place import LOOPBACK, interface, own_address

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TRIM, _MALLOPT = (getattr(_LIBC, name, None) for name in ("malloc_trim", "mallopt"))  # glibc alone has both
_SMALL = 2**24  # bytes of weights
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def prepare_process(
    device: Device, *, threads: int, rank: int, ranks: int, port: int, address: str = LOOPBACK
) -> torch.device:
    """Set up this process as one rank, without a launcher and unneeded native ops; its device.

    ``address`` and ``port``: where the ranks meet, on rank 0's node. All listen in that network alone.

    RuntimeError if there is no such device here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"trainer.device=cuda: torch {torch.__version__} finds no GPU in this process: install a CUDA build of"
            " torch and a driver for it, or set trainer.device=cpu"
        )
    torch.set_num_threads(threads)
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "parl" / "torch_extensions"))
    local = 0 if device == "cuda" else rank  # DeepSpeed's number of the GPU
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    loopback = "lo0" if sys.platform == "darwin" else "lo"  # not the host's own IP
    line = loopback if address == LOOPBACK else interface(own_address())
    os.environ["GLOO_SOCKET_IFNAME"] = line
    if device == "cuda":
        os.environ["NCCL_SOCKET_IFNAME"] = line
        torch.cuda.set_device(0)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    deepspeed.utils.logging.logger.setLevel("ERROR")
    if not deepspeed.comm.is_initialized():
        __compatible_ops__["deepspeed_shm_comm"] = False  # otherwise DeepSpeed compiles it first, for 24 s and more
        backend = _BACKENDS[device]
        if not distributed.is_initialized():
            store = _meeting(rank, ranks, port, address)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks)
        deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo")
    return torch.device(device, 0) if device == "cuda" else torch.device(device)


class FreedMemory:
    """What glibc does with memory that a step freed, for a policy with ``weights`` bytes of weights.

    What a step frees lies between what it keeps. A rank with a large policy grows to about 1.5 times what it holds
    unless it gives that back after every step. With a small one that costs a fifth of the step, since all of it has to
    be mapped again, and saves little: it is kept.
    """

    def __init__(self, weights: int) -> None:
        self._kept = False
        if weights <= _SMALL and _MALLOPT is not None:
            self._kept = True
            _MALLOPT(_M_MMAP_THRESHOLD, 2**30)
            _MALLOPT(_M_TRIM_THRESHOLD, 2**30)
            _MALLOPT(_M_TOP_PAD, 2**26)

    def give_back(self) -> None:
        """Give it back to the system, unless it is kept."""
        if not self._kept and _TRIM is not None:
            _TRIM(0)


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _meeting(rank: int, ranks: int, port: int, address: str = LOOPBACK) -> Store:
    """The ranks' rendezvous. (PyTorch's own server would listen on all addresses.)"""
    if ranks == 1:
        return HashStore()
    if rank != 0:
        return TCPStore(address, port, ranks, is_master=False)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    listening.listen()
    given = {"wait_for_workers": False, "master_listen_fd": listening.detach()}
    return TCPStore(address, port, ranks, is_master=True, **given)
