"""DeepSpeed as the learner uses it. Everything learnt about it the hard way stands here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch

from funicular.actors.config import LearnerConfig
from funicular.actors.optimizers import make_optimizer
from funicular.actors.schedules import make_schedule
from funicular.cluster.rendezvous import NCCL_ENVIRONMENT, interface_towards

# DeepSpeed's defaults of 5e8 elements are made for GPUs; on a CPU they cost gigabytes and time.
_CPU_SIZES = {
    "reduce_bucket_size": 5_000_000,
    "allgather_bucket_size": 5_000_000,
    "stage3_prefetch_bucket_size": 5_000_000,
    "stage3_max_live_parameters": 30_000_000,
    "stage3_max_reuse_distance": 30_000_000,
    "sub_group_size": 100_000_000,
}


def join_process_group(rank: int, world_size: int, host: str, port: int, *, timeout_s: float) -> torch.device:
    """Join the learner's process group and return this rank's device. Once per process.

    Args:
        timeout_s: seconds after which a collective fails because a peer does not come.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE="1",
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    if interface := interface_towards(host, port):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if on_gpu:
        os.environ.update(NCCL_ENVIRONMENT)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory collectives would be compiled here, which needs a C++ toolchain on every node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
    )
    return torch.device("cuda:0" if on_gpu else "cpu")


def make_engine(policy: Any, config: LearnerConfig, device: torch.device, total_steps: int | None) -> Any:
    """Wrap the policy. Gradients are summed by `backward`, applied by `apply_gradients`.

    Args:
        policy: a PolicyModel.
        total_steps: optimizer steps of the whole run, for a schedule that ends with it.

    Raises:
        ValueError: bfloat16 parameters, offload or an optimizer that this ZeRO stage cannot have, or a schedule that
            decays without `total_steps`.
    """
    _check_stage(config)
    import deepspeed

    optimizer = make_optimizer(policy, config)
    if config.zero_stage == 3:
        _partition(policy, config, device)
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        lr_scheduler=lambda optimizer: make_schedule(optimizer, config, total_steps),
        config=_deepspeed_config(config, device),
        dist_init_required=False,
    )
    if config.zero_stage == 0 and torch.distributed.get_world_size() == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients there and back for nobody
    return engine


def make_frozen_engine(model: torch.nn.Module, config: LearnerConfig, device: torch.device) -> Any:
    """Partition a model that is not trained, by ZeRO-3: each rank then holds its share. No optimizer, no gradients."""
    import deepspeed

    _partition(model, config, device)
    engine, *_ = deepspeed.initialize(model=model, config=_deepspeed_config(config, device), dist_init_required=False)
    return engine


def _partition(model: torch.nn.Module, config: LearnerConfig, device: torch.device) -> None:
    """Share out the parameters of a model in the host's memory among the ranks, one after the other.

    `deepspeed.initialize` would first put the whole model on the device.
    """
    import deepspeed

    deepspeed.zero.Init(
        module=model, config_dict_or_path=_deepspeed_config(config, device), dtype=getattr(torch, config.dtype)
    )
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _check_stage(config: LearnerConfig) -> None:
    stage = config.zero_stage
    if config.dtype == "bfloat16" and stage == 0:
        raise ValueError(
            "learner.zero_stage: got 0 with learner.dtype=bfloat16, for which DeepSpeed would sum gradients in "
            "bfloat16; set learner.zero_stage=1, which costs nothing more, or learner.dtype=float32"
        )
    if config.offload_optimizer != "none" and stage == 0:
        raise ValueError("learner.offload_optimizer: without ZeRO nothing is offloaded; set learner.zero_stage=1 to 3")
    if config.offload_parameters != "none" and stage < 3:
        raise ValueError(f"learner.offload_parameters: ZeRO stage {stage} keeps parameters; set learner.zero_stage=3")


def _deepspeed_config(config: LearnerConfig, device: torch.device) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": device.type == "cuda"}
    if device.type == "cpu":
        zero |= _CPU_SIZES
    for key, place in (("offload_optimizer", config.offload_optimizer), ("offload_param", config.offload_parameters)):
        if place != "none":
            zero[key] = {"device": place, "pin_memory": device.type == "cuda"}
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only names of things here: `backward` is told not to divide
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "gradient_clipping": config.max_grad_norm,  # unset, it would be 1.0
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload it would insist on its own Adam, compiled on the spot
    }
    if config.dtype == "bfloat16":
        out["bf16"] = {"enabled": True}
        out["data_types"] = {"grad_accum_dtype": "fp32"}  # 2^8 micro-batches would vanish in bfloat16 sums
    return out


def backward(engine: Any, loss: torch.Tensor, world_size: int) -> None:
    """Add the gradient of this rank's part of the optimizer batch's loss.

    Before the forward pass, `engine.set_gradient_accumulation_boundary` must have been told whether it is the last.
    DeepSpeed averages over ranks: the loss is multiplied by their number, and `scale_wrt_gas=False` keeps it from
    dividing by a number of accumulation steps that it does not know.
    """
    engine.backward(loss * world_size, scale_wrt_gas=False)


def apply_gradients(engine: Any) -> float:
    """One optimizer step. Returns the gradient's norm before clipping."""
    if engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled():  # DeepSpeed knows no norm here
        grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        engine.step()
        return norm
    engine.step()
    return float(engine.get_global_grad_norm())


def whole_gradient(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """A parameter's gradient, summed over micro-batches and ranks as `backward` scales it, in its whole shape.

    Between the last `backward` of an optimizer batch and `apply_gradients`; a collective. None: it has none.
    """
    if engine.zero_optimization_stage() == 0:
        return parameter.grad
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)


def is_partitioned(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether ZeRO-3 has shared any of them out."""
    return any(hasattr(p, "ds_id") for p in parameters)


def gathered(parameters: Iterable[torch.nn.Parameter], *, writes: bool = False) -> AbstractContextManager[Any]:
    """Make whole the parameters that ZeRO-3 has partitioned; a collective. Nothing to do for the other stages.

    Args:
        writes: what rank 0 has written into them stays, on all ranks.
    """
    parameters = list(parameters)
    if not is_partitioned(parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if writes else None)


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
