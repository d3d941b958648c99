"""GPU kernels in Triton: the functions of :mod:`model.kernels.reference` for tensors on a CUDA device.

Needs the package ``triton``, which CUDA builds of torch bring; imported only when a GPU tensor needs it. With
``TRITON_INTERPRET=1`` set before the first import the kernels run on the CPU, slowly.
"""

from model.kernels.triton.dispatch import dispatch
from model.kernels.triton.expert_grad import expert_mlp_bwd
from model.kernels.triton.expert_mlp import expert_mlp_fwd
from model.kernels.triton.fake_quant import fake_quant_int4_g32
from model.kernels.triton.logprobs import token_logprobs_bwd, token_logprobs_fwd
from model.kernels.triton.rotary import rotate_tails_
from model.kernels.triton.route import route_bwd, route_fwd
from model.kernels.triton.swiglu import swiglu_bwd, swiglu_fwd

__all__ = [
    "dispatch",
    "expert_mlp_bwd",
    "expert_mlp_fwd",
    "fake_quant_int4_g32",
    "rotate_tails_",
    "route_bwd",
    "route_fwd",
    "swiglu_bwd",
    "swiglu_fwd",
    "token_logprobs_bwd",
    "token_logprobs_fwd",
]
