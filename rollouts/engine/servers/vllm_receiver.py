"""Weights in buckets for a vLLM server: a transfer back end registered in vLLM's workers.

    PYTHONPATH=... vllm serve FOLDER --worker-extension-cls rollouts.engine.servers.vllm_receiver.Receiver \
        --weight-transfer-config '{"backend": "parl_files"}'

vLLM's own back ends (NCCL, CUDA IPC, RDMA) need a GPU on both sides. This one reads safetensors files, from a
folder shared by trainer and server (``{"update_info": {"path": FILE}}``) or from the server's own disk
(``{"update_info": {"sha256": NAME}}``), where :meth:`Receiver.parl_pull` brought them while the server went on.
The protocol is vLLM's: ``/start_weight_update``, one ``/update_weights`` per bucket, ``/finish_weight_update``.
Written against vLLM 0.32; runs inside its workers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory,
)
from vllm.model_executor.model_loader import reload  # pyright: ignore[reportMissingImports]

from rollouts.engine.servers.blobs import Manifest
from rollouts.engine.servers.puller import Puller

BACKEND = "parl_files"
_pullers: list[Puller] = []  # of this process: one, from the first use on


def _puller() -> Puller:
    if not _pullers:
        _pullers.append(Puller())
    return _pullers[0]


@dataclass
class Nothing(WeightTransferInitInfo):
    """No initial exchange is needed."""


@dataclass
class Bucket(WeightTransferUpdateInfo):
    """One safetensors file with some of the checkpoint's tensors, under Hugging Face's names.

    Its ``path``, or the ``sha256`` of a shard that was pulled.
    """

    path: str = ""
    sha256: str = ""


class FileTransfer(WeightTransferEngine):
    """Loads one bucket after the other into the running model."""

    init_info_cls = Nothing
    update_info_cls = Bucket

    def init_transfer_engine(self, init_info: Any) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """The model then expects tensors as in a checkpoint."""
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Load one bucket."""
        path = update_info.path or _puller().path(update_info.sha256)
        self.model.load_weights(load_file(path).items())

    def finish_weight_update(self) -> None:
        """Convert the tensors to the kernels' layout."""
        reload.finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._pack_experts()

    def _pack_experts(self) -> None:
        """Pack experts for the CPU kernels: vLLM 0.32 does so only at the first load, and fails silently."""
        for layer in self.model.modules():
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing to release."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)


class Receiver:
    """Named by ``--worker-extension-cls``: vLLM imports this module in each worker, and offers these methods."""

    def parl_pull(self, manifest: str) -> None:
        """Begin to fetch a version's shards; the server goes on with its requests."""
        _puller().begin(Manifest.read(manifest))

    def parl_pulled(self) -> dict[str, Any]:
        """:class:`rollouts.engine.servers.puller.Pulled` of the last pull."""
        return _puller().state()
