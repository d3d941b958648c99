"""What a rank of the learner holds, in bytes by part: what its code allocates, not what it could. No torch.

Two moments are counted, and the larger is the peak: a step's passes, and the optimiser's update. Compared with measured
peaks by ``benchmarks/memory.py``. Where a number comes from:

- ZeRO 0 keeps weights, gradients and states in float32 (``settled``: a policy in bfloat16 trains at ZeRO 2 at least).
  Clipping squares one gradient after the other in float64. Ranks that share the work hold the updates of all matrices.
- ZeRO 1 and 2 keep weights in the policy's dtype and float32 masters and states of a share; gradients are split from 2
  on. A bucket of gradients is reduced through a copy. Of a policy in bfloat16 it is added to float32 sums, which the
  update takes as they are; one in float32 keeps a micro-batch's gradients beside their sum, and the update flattens
  those of a group.
- ZeRO 3 keeps a share of the weights too, and gathers two layers at most. The update flattens a group's gradients; a
  matrix that is cut over ranks is made whole with others, in two buffers.
- Muon looks ahead in the gradients' place. Its iteration is in the policy's dtype.
- Activations: with recomputation the layers' inputs and one layer's inside, else every layer's; the head works through
  chunks of logits, and its gradient is summed in float32 beside its cast.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.costs import Costs
from model.family import Shape
from parl.learn.config import OptimizerConfig, ParallelConfig, settled
from parl.plan.plan import count

_FLOAT, _DOUBLE = 4, 8  # bytes
BUCKET = 2**24  # elements that are reduced at a time (parl.learn.shard.ds_engine)
ASSEMBLED = 2**24  # elements of cut matrices that are whole at a time (parl.learn.shard.split_muon)
_CHUNK = 2**24  # elements of logits at a time (model.blocks.logprobs)
_CHUNKS = 4  # of them: logits, their log-probs or softmax, the gradient, a temporary
_ITERATES = 5  # copies of a matrix during Newton-Schulz: the iterate, Gram matrices, their product
_ADAM, _MUON = 2, 1  # states a number
# A rank's process without a policy: Python, torch, DeepSpeed, transformers and what their first use keeps. The middle
# of what ranks of three layouts (ZeRO 0, 2, 3) took beyond the count with a policy of 1.2 M parameters: 395 to 465 MB
PROCESS = 430e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """``kept``: part -> bytes at any time; ``passes``, ``update``: besides, at these moments; ``host``: offloaded."""

    kept: dict[str, float]
    passes: dict[str, float]
    update: dict[str, float]
    host: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes on the rank's device at most."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the peak."""
        moment = max((self.passes, self.update), key=lambda parts: sum(parts.values()))
        return {name: size for name, size in {**self.kept, **moment}.items() if size}


def held(
    shape: Shape, optimizer: OptimizerConfig, parallel: ParallelConfig, *, ranks: int, tokens: int, several: bool = True
) -> Held:
    """What one of ``ranks`` holds with micro-batches of ``tokens``, ``several`` a step. UserError: unknown costs."""
    n, parallel = count(shape), settled(parallel, shape, optimizer)
    wide = 2 if shape.weights_dtype == "bfloat16" else _FLOAT
    whole, share = n.rest + n.routed / parallel.expert_parallel, n.total / ranks
    passes = _activations(n, parallel, wide, tokens)
    if optimizer.lora:  # adapters and their states are small beside what is frozen
        return Held(kept={"weights": wide * whole}, passes=passes, update={}, host={})
    split = share if parallel.zero else whole
    muon = 0.0 if optimizer.muon_lr is None else 1 - _rest(n) / n.total  # share of numbers that Muon updates
    kept = {"weights": wide * (share if parallel.zero == 3 else whole)}
    kept |= {"masters": _FLOAT * split} if parallel.zero else {}
    kept |= {"gradients": _FLOAT * (split if parallel.zero > 1 else whole)}
    kept |= {"optimiser states": _FLOAT * split * (_MUON * muon + _ADAM * (1 - muon))}
    bucket = wide * min(n.total, BUCKET)
    if parallel.zero == 0:
        update = _update_whole(n, whole, muon, ranks, parallel.expert_parallel)
    else:
        flat = _FLOAT * split * (parallel.zero == 3 or wide == _FLOAT)
        update = _update_split(split, muon, wide, flat, _largest_matrix(n, parallel.expert_parallel)) | _together(
            n, muon, parallel, ranks
        )
        passes["bucket, reduced"] = bucket
        if parallel.zero == 3:
            kept["bucket of gradients"] = bucket
            gathered = wide * 2 * _gathered(n, parallel.expert_parallel)
            passes |= {"gathered layers": gathered, "gradients of a gathered layer": gathered}
        else:
            passes["bucket of gradients"] = bucket
            passes["gradients of a micro-batch"] = _FLOAT * (
                split * several if wide == _FLOAT else _largest(n, parallel.expert_parallel)
            )
    host = {}
    if parallel.offload == "cpu":
        names = ("masters", "gradients", "optimiser states")
        host = {name: kept.pop(name) for name in names if name in kept}
        if parallel.zero < 3 and wide < _FLOAT:  # the float32 sums leave the device at the end of a step
            passes["gradients"] = host["gradients"]
        host |= {"update": sum(update.values())}
        update = {}
    return Held(kept=kept, passes=passes, update=update, host=host)


def _update_whole(n: Costs, whole: float, muon: float, ranks: int, degree: int) -> dict[str, float]:
    """At ZeRO 0, tensor by tensor: clipping's square, or Muon's iteration; ranks send one another what each did."""
    square = _DOUBLE * _largest(n, degree)
    iteration = _ITERATES * _FLOAT * _largest_matrix(n, degree) * bool(muon)
    if ranks == 1:
        return {"one gradient in float64": square} if square > iteration else {"one matrix's iteration": iteration}
    shared = {"one matrix's iteration": iteration, "updates of all matrices": _FLOAT * whole * muon * (1 + 1 / ranks)}
    reduced = {"bucket of gradients": _FLOAT * min(whole, BUCKET + _largest(n, degree))}
    return max((shared, reduced), key=_sum)


def _update_split(split: float, muon: float, wide: int, flat: float, matrix: float) -> dict[str, float]:
    """With masters, one group of parameters after the other: its gradients, ``flat`` in all, and what is computed."""
    iteration = _ITERATES * wide * matrix + (0 if wide == _FLOAT else wide * matrix)  # with the cast of it
    by_muon = {"gradients, flat": flat * muon, "one matrix's iteration": iteration * bool(muon)}
    by_adam = {"gradients, flat": flat * (1 - muon), "denominators": _FLOAT * split * (1 - muon)}
    return max((by_muon, by_adam), key=_sum)


def _together(n: Costs, muon: float, parallel: ParallelConfig, ranks: int) -> dict[str, float]:
    """Two buffers for matrices that lie on several ranks: at ZeRO 3 all, else those at the ends of a rank's range."""
    cut = (
        min(ASSEMBLED, n.total * muon)
        if parallel.zero == 3
        else _largest_matrix(n, parallel.expert_parallel) * bool(muon)
    )
    return {"matrices of several ranks": 2.0 * _FLOAT * cut} if ranks > 1 else {}


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _rest(n: Costs) -> float:
    """Numbers that AdamW updates beside Muon: embedding, head, routers; norms are few."""
    return n.ends + n.routed_layers * n.experts * n.hidden


def _gathered(n: Costs, degree: int) -> float:
    """Elements of the largest layer, or of the embedding, that ZeRO 3 gathers at once."""
    routed = n.routed / max(n.routed_layers, 1) / degree
    return max(routed + (n.rest - n.ends) / n.layers, n.embedding)


def _largest(n: Costs, degree: int) -> float:
    """Elements of the largest tensor."""
    return max(n.embedding, _largest_matrix(n, degree))


def _largest_matrix(n: Costs, degree: int) -> float:
    """Elements orthogonalised at once: a rank's stack of one of a layer's two tensors of experts, or a dense matrix."""
    stack = n.routed / max(n.routed_layers, 1) / degree * 2 / 3
    return max(stack, (n.rest - n.ends) / n.layers / 3)


def _activations(n: Costs, parallel: ParallelConfig, wide: int, tokens: int) -> dict[str, float]:
    inside = wide * tokens * n.inside
    layers = inside * 2 if parallel.recompute else inside * n.layers
    logits = _CHUNKS * _FLOAT * min(_CHUNK, tokens * n.vocabulary)
    head = (_FLOAT + wide) * n.embedding  # its gradient, and the cast of it
    return {
        "layers' inputs": float(wide * tokens * n.hidden * n.layers),
        "layers' inside": float(layers),
        "logits and the head's gradient": float(logits + head),
    }
