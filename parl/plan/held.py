"""What a rank of the learner holds, in bytes by part: what its code allocates, not what it could. No torch.

Two moments are counted, and the larger is the peak: the end of a step's passes, and the optimiser's update. Compared
with measured peaks by ``benchmarks/memory.py``. Where a number comes from:

- ZeRO 0 keeps weights, gradients and states in float32 (``settled``: a policy in bfloat16 trains at ZeRO 2 at least).
  Muon looks ahead tensor by tensor on one rank, and for all of them at once where ranks share the work.
- ZeRO 1 and 2 keep weights in the policy's dtype and float32 masters, gradients and states of a share. Gradients are
  reduced in a bucket; those of each further micro-batch are a second set before they are added. The update looks ahead
  for the whole share.
- ZeRO 3 keeps a share of the weights too, and gathers two layers at most; the update flattens the gradients once more,
  and a matrix that is cut over ranks is made whole with others, in two buffers.
- Activations: with recomputation the layers' inputs and one layer's inside, else every layer's; the head works through
  chunks of logits, and its gradient is summed in float32 beside its cast.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.costs import Costs
from model.family import Shape
from parl.learn.config import OptimizerConfig, ParallelConfig, settled
from parl.plan.plan import count

_FLOAT = 4  # bytes
BUCKET = 50_000_000  # elements that are reduced at a time (parl.learn.shard.ds_engine)
ASSEMBLED = 16 * 2**20  # elements of cut matrices that are whole at a time (parl.learn.shard.split_muon)
_CHUNK = 2**24  # elements of logits at a time (model.blocks.logprobs)
_CHUNKS = 4  # of them: logits, their log-probs or softmax, the gradient, a temporary
_ITERATES = 5  # copies of a matrix during Newton-Schulz: the iterate, Gram matrices, their product
_ADAM, _MUON = 2, 1  # states a number
# A rank's process without a policy by ZeRO stage, measured with one of 86,000 parameters: Python, torch, DeepSpeed,
# transformers and what their first use keeps
PROCESS = {0: 386e6, 1: 442e6, 2: 442e6, 3: 447e6}


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
    if optimizer.lora:  # adapters and their states are small beside what is frozen
        return Held(kept={"weights": wide * whole}, passes=_activations(n, parallel, wide, tokens), update={}, host={})
    split = share if parallel.zero else whole
    muon = 0.0 if optimizer.muon_lr is None else 1 - _rest(n) / n.total  # share of numbers that Muon updates
    states = _FLOAT * split * (_MUON * muon + _ADAM * (1 - muon))
    kept = {"weights": wide * (share if parallel.zero == 3 else whole)}
    kept |= {"masters": _FLOAT * split} if parallel.zero else {}
    kept |= {"gradients": _FLOAT * (split if parallel.zero else whole), "optimiser states": states}
    passes = _activations(n, parallel, wide, tokens)
    matrix = _FLOAT * _largest_matrix(n, parallel.expert_parallel)
    update = {"look-ahead": _FLOAT * split * muon, "one matrix's iteration": _ITERATES * matrix * bool(muon)}
    if parallel.zero == 0:
        if ranks == 1:
            update["look-ahead"] = min(update["look-ahead"], matrix)
        else:  # gradients are reduced flat; updates are sent flat
            passes["gradients, flat"] = _FLOAT * whole
            update["updates of all matrices"] = 2 * _FLOAT * whole * muon
    else:
        bucket = wide * min(n.total, BUCKET)
        passes["bucket of gradients"] = bucket
        update["bucket of gradients"] = bucket
        if several and parallel.zero < 3:
            passes["gradients of a micro-batch"] = _FLOAT * split
    if parallel.zero == 3:
        gathered = wide * 2 * _gathered(n, parallel.expert_parallel)
        passes |= {"gathered layers": gathered, "gradients of a gathered layer": gathered}
        update["gradients, flat"] = _FLOAT * split
        update["matrices of several ranks"] = 2 * _FLOAT * min(ASSEMBLED, n.total * muon) * (ranks > 1)
    host = {}
    if parallel.offload == "cpu":
        names = ("masters", "gradients", "optimiser states")
        host = {name: kept.pop(name) for name in names if name in kept}
        host |= {"update": sum(update.values())}
        update = {}
    return Held(kept=kept, passes=passes, update=update, host=host)


def _rest(n: Costs) -> float:
    """Numbers that AdamW updates beside Muon: embedding, head, routers; norms are few."""
    return n.ends + n.routed_layers * n.experts * n.hidden


def _gathered(n: Costs, degree: int) -> float:
    """Elements of the largest layer, or of the embedding, that ZeRO 3 gathers at once."""
    routed = n.routed / max(n.routed_layers, 1) / degree
    return max(routed + (n.rest - n.ends) / n.layers, n.embedding)


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
