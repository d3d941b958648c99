"""Weights in buckets for a vLLM server: a transfer back end of vLLM's own, registered in its workers.

    PYTHONPATH=... vllm serve FOLDER --worker-extension-cls rollouts.engine.servers.vllm_receiver.Receiver \
        --weight-transfer-config '{"backend": "parl_files"}'

vLLM's back ends (NCCL, CUDA IPC, RDMA) all want a GPU on both sides. This one reads safetensors files from a folder
that trainer and server share, so it works wherever vLLM does. The protocol is vLLM's: ``/start_weight_update``, one
``/update_weights`` a bucket with ``{"update_info": {"path": FILE}}``, ``/finish_weight_update``. Written against
vLLM 0.32; runs inside its workers, nowhere else.
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

BACKEND = "parl_files"


@dataclass
class Nothing(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class Bucket(WeightTransferUpdateInfo):
    """One safetensors file with some of the checkpoint's tensors, under Hugging Face's names."""

    path: str


class FileTransfer(WeightTransferEngine):
    """Loads one bucket after the other into the running model."""

    init_info_cls = Nothing
    update_info_cls = Bucket

    def init_transfer_engine(self, init_info: Any) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """The model expects tensors as a checkpoint has them."""
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Load one bucket."""
        self.model.load_weights(load_file(update_info.path).items())

    def finish_weight_update(self) -> None:
        """Bring the tensors into the form that the kernels take."""
        reload.finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._pack_experts()

    def _pack_experts(self) -> None:
        """vLLM 0.32 packs experts for its CPU kernels when it loads them first, and leaves later ones unpacked: the
        kernels would read them in the wrong order, and nothing fails."""
        for layer in self.model.modules():
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)


class Receiver:
    """What ``--worker-extension-cls`` names, so that vLLM imports this module in each worker."""
