"""Which decoder serves a shape."""

from __future__ import annotations

from model.decoder import Decoder
from model.hf.build import new_model
from model.hf.decode.native import GqaDecoder
from model.hf.decode.paged import PagedDecoder
from model.hf.decode.plan import supported
from model.hf.policy import HfPolicy
from model.hf.shape import HfShape
from model.kernels.native import load_library


def make_decoder(shape: HfShape, pages: int) -> Decoder:
    """The native decoder where it serves ``shape`` and can be built (else a warning says why), or the reference one."""
    if supported(shape) and load_library() is not None:
        return GqaDecoder(shape, pages)
    return PagedDecoder(HfPolicy(shape, new_model(shape, drawn=False)), pages)
