"""Copies from the host to the policy's device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` of the host on ``device``; to a GPU from pinned memory, so that the host need not wait."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if torch.cuda.is_available() else tensor).to(device, non_blocking=True)
