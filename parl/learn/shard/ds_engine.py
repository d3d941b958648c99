"""The DeepSpeed engine of one rank: its configuration, and the marks of our experts.

DeepSpeed reduces parameters marked ``allreduce = False`` over the ranks that hold the same experts, and
divides by the number of all ranks: with a loss that each rank multiplies by their number, the gradient is
that of a single process. Its engine knows only its own expert layers, so it is told of ours; at stage 3
parameters carry the marks of its AutoEP instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.policy import Policy
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.shard.optimizer import MuonAdamW

# Private parts of DeepSpeed that are used; present in 0.19.8
_GROUPS = ("_create_expert_and_data_parallel", "_get_expert_parallel_group", "_get_expert_data_parallel_group")
_ZERO_1_2 = (
    *("round_robin_bit16_groups", "round_robin_bit16_offsets", "partition_size", "real_dp_process_group"),
    *("single_partition_of_fp32_groups", "update_lp_params", "refresh_fp32_params"),
)
_ZERO_3 = (
    *("fp16_groups", "sub_group_process_groups", "fp32_partitioned_groups_flat", "sub_group_to_group_id"),
    *("_partition_all_parameters", "_reassign_or_swap_out_partitioned_parameters", "persistent_parameters"),
)
PERSISTENT = 10_000  # ZeRO 3 keeps smaller parameters whole: gathering them would be all latency
_CUTTER = ("_convert_to_deepspeed_param", "_enable_mem_efficient_linear")
_ENGINE = ("_configure_distributed_model", "_broadcast_model", "buffered_allreduce_fallback")
_BUCKET = 2**24  # elements reduced at a time: they are held two or three times meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRanks:
    """Expert parallelism: DeepSpeed's group name, the ranks that share a layer's experts, and the replicas."""

    name: str
    split: dist.ProcessGroup
    replicas: dist.ProcessGroup

    @property
    def rank(self) -> int:
        """This rank's share of the experts."""
        return dist.get_rank(self.split)

    @property
    def ranks(self) -> int:
        """Number of shares."""
        return dist.get_world_size(self.split)


def expert_ranks(degree: int) -> ExpertRanks | None:
    """The groups of this rank, created once per process; None without expert parallelism."""
    if degree == 1:
        return None
    from deepspeed.utils import groups

    check_parts(groups, _GROUPS, "trainer.parallel.expert_parallel")
    name = f"ep_size_{degree}"
    groups._create_expert_and_data_parallel(degree)
    return ExpertRanks(
        name=name,
        split=groups._get_expert_parallel_group(name),
        replicas=groups._get_expert_data_parallel_group(name),
    )


def check_parts(owner: object, names: Sequence[str], what: str) -> None:
    """RuntimeError if DeepSpeed's ``owner`` lacks private parts that ``what`` needs."""
    import deepspeed

    if missing := [name for name in names if not hasattr(owner, name)]:
        raise RuntimeError(
            f"{what} uses {', '.join(missing)} of DeepSpeed, which version {deepspeed.__version__} lacks: install"
            " deepspeed==0.19.8, or set trainer.parallel to its defaults"
        )


def mark_expert(parameter: nn.Parameter, ranks: ExpertRanks) -> None:
    """Tell DeepSpeed the ranks over which ``parameter`` is reduced (all stages), and partitioned (stage 3)."""
    marks: dict[str, Any] = {
        "allreduce": False,
        "group_name": ranks.name,
        "ds_zero_placement_family": "autoep_expert",
        "ds_zero_partition_group_name": ranks.name,
        "ds_zero_partition_process_group": ranks.replicas,
    }
    for name, value in marks.items():
        setattr(parameter, name, value)


def make_optimizer(
    model: Policy, config: OptimizerConfig, *, zero: int, experts: ExpertRanks | None, shared: bool
) -> MuonAdamW:
    """Muon and AdamW over ``model``; ``shared``: other ranks hold the same gradients."""
    lora = model.lora
    # orthogonalising a product's factors would not orthogonalise the product
    matrices, rest = ([], list(lora.parameters())) if lora else model.muon_parameters()
    split = [p for p in matrices if getattr(p, "allreduce", True) is False]
    return MuonAdamW(
        [p for p in matrices if getattr(p, "allreduce", True)],
        rest,
        muon_lr=config.muon_lr,
        lr=config.lr,
        grad_clip=None if zero else config.grad_clip,
        weight_decay=config.weight_decay,
        share=shared and not zero,
        experts=split,
        expert_groups=None if experts is None else (experts.name, experts.split, experts.replicas),
    )


def partition(model: Policy, config: dict[str, Any], device: torch.device) -> None:
    """Give the parameters of ``model``, which have no memory, this rank's shares, as ZeRO 3's engine would cut them.

    One parameter at a time is whole, in memory of ``device`` that holds anything; buffers go there as well.
    """
    import deepspeed

    cutter: Any = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=config)
    check_parts(cutter, _CUTTER, "trainer.parallel.zero=3")
    kind = getattr(torch, model.config.weights_dtype)
    for parameter in model.parameters():
        whole: Any = nn.Parameter(torch.empty(parameter.shape, dtype=kind, device=device), parameter.requires_grad)
        vars(whole).update(vars(parameter))  # marks of experts
        torch.utils.swap_tensors(parameter, whole)  # the optimiser knows it already
        cutter._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[operator]
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def make_engine(model: Policy, optimizer: MuonAdamW, parallel: ParallelConfig, config: dict[str, Any]) -> Any:
    """A ``DeepSpeedEngine`` over ``model``; ``config``: :func:`engine_config` of it."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.engine import DeepSpeedEngine

    class Engine(DeepSpeedEngine):
        def _configure_distributed_model(self, model: nn.Module) -> None:
            super()._configure_distributed_model(model)
            self.has_moe_layers = parallel.expert_parallel > 1 and parallel.zero < 3

        def _broadcast_model(self) -> None:
            """Nothing: ranks draw the same weights by the same seed, or are given the same."""

        def buffered_allreduce_fallback(self, grads: Any = None, elements_per_buffer: int = 0) -> None:
            """In buckets of our size; without peers nothing: it would copy all gradients, and back."""
            if dist.get_world_size() > 1:
                super().buffered_allreduce_fallback(grads, _BUCKET)

    check_parts(DeepSpeedEngine, _ENGINE, "trainer.parallel")
    settings = DeepSpeedConfig(config, None)
    engine = Engine(args=None, model=model, optimizer=optimizer, config=config, config_class=settings)
    if parallel.zero:
        parts = _ZERO_1_2 if parallel.zero < 3 else _ZERO_3
        check_parts(engine.optimizer, parts, f"trainer.parallel.zero={parallel.zero}")
    return engine


def frozen_config(model: Policy) -> dict[str, Any]:
    """DeepSpeed's settings of ZeRO 3 for a policy that is not trained."""
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": _stage3(model)}


def make_frozen_engine(model: Policy, config: dict[str, Any]) -> Any:
    """ZeRO 3 for a policy that is not trained: its weights are spread over the ranks and gathered on use."""
    import deepspeed

    return deepspeed.initialize(model=model, config=config)[0]


def _stage3(model: Policy) -> dict[str, Any]:
    stage: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": PERSISTENT,
    }
    if model.layer_classes:  # gather a layer's weights together, whichever module reads them
        stage["leaf_module"] = {"classes": list(model.layer_classes)}
    # by default DeepSpeed lets up to 10^9 gathered elements live on: of a smaller policy all of them
    live = 2 * largest_layer(model)
    stage |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
    return stage | {"stage3_prefetch_bucket_size": live // 2}


def largest_layer(model: Policy) -> int:
    """Elements of the largest part that ZeRO 3 gathers at once: a layer, or what is in none (embedding, head)."""
    kinds = model.layer_classes
    layers = [m for m in model.modules() if f"{type(m).__module__}.{type(m).__name__}" in kinds]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    return max([*sizes, *(p.numel() for p in model.parameters() if id(p) not in inside), 1])


def engine_config(model: Policy, parallel: ParallelConfig, grad_clip: float) -> dict[str, Any]:
    """DeepSpeed's settings for ``model``, whose parameters are not cut yet."""
    elements = sum(p.numel() for p in model.parameters())
    zero: dict[str, Any] = {"stage": parallel.zero}
    if parallel.zero:
        zero |= {
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": min(elements, _BUCKET),
            "allgather_bucket_size": min(elements, _BUCKET),
        }
    if parallel.zero == 3:
        zero |= _stage3(model)
    if parallel.offload != "none":
        zero["offload_optimizer"] = {"device": parallel.offload, "pin_memory": torch.cuda.is_available()}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # the number of micro-batches varies by step
        # without ZeRO our optimiser clips; by default DeepSpeed would clip to 1, and each rank's experts
        # separately
        "gradient_clipping": grad_clip if parallel.zero else 0.0,
        "zero_optimization": zero,
    }
    if model.config.weights_dtype == "bfloat16" and not model.lora:
        # casts parameters, not buffers; the caller finds a norm that is not finite, as in float32
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if parallel.zero:
        config |= {
            "zero_allow_untested_optimizer": True,  # MuonAdamW, tested here
            "zero_force_ds_cpu_optimizer": False,
        }
    return config
