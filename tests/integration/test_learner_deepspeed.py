"""Optimizers, clipping, offload, passes, adapters and the reference policy: DeepSpeed against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from tests import plain_policy
from tests.learner_batches import LIMIT, batch, distance, load_plain, plan
from tests.learner_host import TEMPERATURE, Hosts
from tests.plain_training import train_step
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.integration

SGD = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0, cpu_threads=1)
CLIP = 0.05
"""Well below the norm of the test batch's gradient."""


@pytest.fixture(scope="module")
def hosts(local_ray: None) -> dict[int, Hosts]:
    return {1: Hosts(1), 2: Hosts(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), architecture="qwen2"))


def plain_step(
    plain: Any, optimizer: torch.optim.Optimizer, batch: Any, algorithm: AlgorithmConfig, **more: Any
) -> Any:
    return train_step(plain, optimizer, *batch, algorithm, temperature=TEMPERATURE, max_completion_tokens=LIMIT, **more)


def parameters_of(plain: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_a_clipped_update_is_that_of_the_summed_gradient_even_if_a_rank_has_no_rows(
    hosts: dict[int, Hosts], model: str, world: int, zero_stage: int
) -> None:
    groups, payloads = batch()
    algorithm = AlgorithmConfig()
    hosts[world].begin(replace(SGD, ranks=world, zero_stage=zero_stage, max_grad_norm=CLIP), algorithm, model)
    plain = load_plain(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for chosen in (groups, groups[:1]):  # micro-batches of unequal number and length; then rank 1 has nothing
        cut = plan(chosen, algorithm, world)
        assert world == 1 or len(chosen) > 1 or not cut.ranks[1].group_ids
        before = parameters_of(plain)
        metrics = hosts[world].step(cut, payloads)
        (norm,) = plain_step(plain, optimizer, (chosen, payloads), algorithm, max_grad_norm=CLIP)
        assert norm > 2 * CLIP
        assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)
        after, *_ = hosts[world].pack()
        expected = parameters_of(plain)
        assert distance(before, expected) == pytest.approx(CLIP, rel=1e-3)
        assert distance(after, expected) < 1e-4 * CLIP


OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "adamw", "zero_stage": 1},
    {"optimizer": "adamw", "zero_stage": 1, "offload_optimizer": "cpu"},
    {"optimizer": "adamw", "zero_stage": 2, "offload_optimizer": "cpu"},
    {"optimizer": "adamw", "zero_stage": 3, "offload_optimizer": "cpu"},
    {"optimizer": "adamw", "zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    {"optimizer": "sgd", "zero_stage": 0, "momentum": 0.9},
    {"optimizer": "sgd", "zero_stage": 2, "momentum": 0.9},
    {"optimizer": "sgd", "zero_stage": 3, "momentum": 0.9, "offload_parameters": "cpu"},
    {"optimizer": "adafactor", "zero_stage": 0},
    {"optimizer": "muon", "zero_stage": 0},
]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: "-".join(map(str, options.values())))
def test_optimizers_schedules_and_offload_do_what_torch_does(
    hosts: dict[int, Hosts], model: str, options: dict[str, Any]
) -> None:
    learning_rate = {"adamw": 1e-3, "sgd": 0.3, "adafactor": 1e-2, "muon": 1e-2}[options["optimizer"]]
    config = LearnerConfig(
        ranks=2,
        cpu_threads=1,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=1,
        min_lr_ratio=0.1,
        weight_decay=0.1,
        **options,
    )
    algorithm = AlgorithmConfig()
    hosts[2].begin(config, algorithm, model, optimizer_steps=4)
    plain = load_plain(model)
    initial = parameters_of(plain)
    optimizers = torch_optimizers(plain, config)
    factors = [1.0, 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25]  # (1 + cos(pi x)) / 2 at x = 0, 1/3, 2/3
    for seed, factor in enumerate(factors):
        groups, payloads = batch(seed)
        metrics = hosts[2].step(plan(groups, algorithm, 2), payloads)
        assert metrics["policy/learning_rate"] == pytest.approx(learning_rate * factor)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
        plain_step(plain, Several(optimizers), (groups, payloads), algorithm, max_grad_norm=1.0)
    after, *_ = hosts[2].pack()
    expected = parameters_of(plain)
    allowed = 0.03 if config.optimizer == "muon" else 2e-3  # Muon multiplies matrices in bfloat16
    assert distance(after, expected) / distance(initial, expected) < allowed


def torch_optimizers(plain: Any, config: LearnerConfig) -> list[torch.optim.Optimizer]:
    """As a user of torch would write them: no decay for biases and norms, Muon for the matrices of the layers."""
    matrices = [p for p in plain.parameters() if p.ndim == 2]
    hidden = [p for name, p in plain.named_parameters() if p.ndim == 2 and ".layers." in name]
    vectors = {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0}
    lr, decay = config.learning_rate, 0.1
    if config.optimizer == "sgd":
        return [torch.optim.SGD([{"params": matrices, "weight_decay": decay}, vectors], lr=lr, momentum=0.9)]
    if config.optimizer == "adafactor":
        return [torch.optim.Adafactor([{"params": matrices, "weight_decay": decay}, vectors], lr=lr)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, vectors], lr=lr)]
    ends = {"params": [p for p in matrices if all(p is not q for q in hidden)], "weight_decay": decay}
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([ends, vectors], lr=lr),
    ]


class Several:
    """Optimizers that step together."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_passes_over_a_batch_keep_the_log_probabilities_of_before_the_first(
    hosts: dict[int, Hosts], model: str, zero_stage: int
) -> None:
    algorithm = AlgorithmConfig(optimizer_batches=2, num_iterations=2)
    hosts[2].begin(replace(SGD, ranks=2, zero_stage=zero_stage), algorithm, model)
    groups, payloads = batch()
    metrics = hosts[2].step(plan(groups, algorithm, 2), payloads)
    after, *_ = hosts[2].pack()
    assert metrics["policy/optimizer_steps"] == 4
    assert metrics["policy/clip_frac_high"] + metrics["policy/clip_frac_low"] > 0
    plain = load_plain(model)
    initial = parameters_of(plain)
    norms = plain_step(plain, torch.optim.SGD(plain.parameters(), lr=1.0), (groups, payloads), algorithm)
    assert metrics["policy/grad_norm"] == pytest.approx(sum(norms) / 4, rel=1e-4)
    expected = parameters_of(plain)
    assert distance(after, expected) / distance(initial, expected) < 1e-5


def token_logprobs(plain: Any, batch: tuple[Any, Any], algorithm: AlgorithmConfig) -> torch.Tensor:
    """Of all trained tokens of the batch."""
    rows = [row for group in plain_policy.valid_rows(*batch, algorithm) for row in group]
    with torch.no_grad():
        return torch.cat([plain_policy.token_logprobs(plain, row, TEMPERATURE) for row in rows])


def kl(policy: Any, reference: Any, batch: tuple[Any, Any], algorithm: AlgorithmConfig) -> float:
    """Mean k3 over all trained tokens."""
    d = token_logprobs(reference, batch, algorithm) - token_logprobs(policy, batch, algorithm)
    return float((d.exp() - d - 1).mean())


@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 1},
        {"zero_stage": 3},
        {"zero_stage": 3, "offload_parameters": "cpu"},
        {"zero_stage": 0, "lora_rank": 4},
        {"zero_stage": 3, "lora_rank": 4},
        {"zero_stage": 3, "lora_rank": 4, "adapter": "dora"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_refreshed_reference_follows_the_policy_and_comes_back_from_a_snapshot(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    mixup, learning_rate = (1.0, 1.0) if "lora_rank" in options else (0.6, 0.1)
    algorithm = AlgorithmConfig(beta=0.05, reference_refresh_steps=2, reference_mixup=mixup)
    config = replace(SGD, ranks=2, learning_rate=learning_rate, **options)
    data = batch()
    hosts[2].begin(config, algorithm, model)
    reference = load_plain(model)
    policy = load_plain(model)
    for step in range(1, 6):
        expected = kl(policy, reference, data, algorithm)
        assert (expected > 1e-6) == (step not in ((1,) if mixup < 1 else (1, 3, 5)))
        metrics = hosts[2].step(plan(data[0], algorithm, 2), data[1])
        assert metrics["policy/kl_ref"] == pytest.approx(expected, rel=2e-3, abs=1e-6), step
        weights, *_ = hosts[2].pack()
        policy = load_plain(model, weights)
        if step % 2 == 0:
            with torch.no_grad():
                for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
                    old.lerp_(new, mixup)
        if step == 3:
            hosts[2].call("save", str(tmp_path))
    last = metrics["policy/kl_ref"]

    hosts[2].begin(config, algorithm, model)
    hosts[2].call("load", str(tmp_path))
    for _ in (4, 5):
        metrics = hosts[2].step(plan(data[0], algorithm, 2), data[1])
    assert metrics["policy/kl_ref"] == last


def elements_held(learner: Any) -> int:
    """By the reference policy on this rank, outside of any pass."""
    model = learner._reference._model
    return sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters())


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_under_zero_3_the_reference_policy_is_held_in_parts(
    hosts: dict[int, Hosts], model: str, zero_stage: int
) -> None:
    hosts[2].begin(replace(SGD, ranks=2, zero_stage=zero_stage), AlgorithmConfig(beta=0.1), model)
    whole = sum(p.numel() for p in load_plain(model).parameters())
    held = hosts[2].run(elements_held)
    assert held == pytest.approx([whole / 2] * 2, rel=0.01) if zero_stage == 3 else held == [whole] * 2


def test_without_a_kl_term_there_is_no_reference_policy(hosts: dict[int, Hosts], model: str) -> None:
    hosts[1].begin(SGD, AlgorithmConfig(), model)
    assert hosts[1].run(lambda learner: learner._reference) == [None]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_an_update_of_adapters_is_the_one_of_peft(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, adapter: Any, rslora: bool
) -> None:
    from peft import PeftModel

    algorithm = AlgorithmConfig()
    groups, payloads = batch()
    config = replace(SGD, lora_rank=4, adapter=adapter, lora_rslora=rslora)
    hosts[1].begin(config, algorithm, model)
    hosts[1].call("export", str(tmp_path))
    plain = PeftModel.from_pretrained(load_plain(model), str(tmp_path / "adapter"), is_trainable=True)
    assert any("magnitude" in name for name, _ in plain.named_parameters()) == (adapter == "dora")
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=1.0)
    for chosen in (groups, groups[:1]):  # the second leaves rank 1 without rows
        plain_step(plain, optimizer, (chosen, payloads), algorithm)
    merged = plain.merge_and_unload()
    expected = parameters_of(merged)
    initial = parameters_of(load_plain(model))
    for world, zero_stage in ((1, 0), (2, 3)):
        hosts[world].begin(replace(config, ranks=world, zero_stage=zero_stage), algorithm, model)
        untouched, *_ = hosts[world].pack()
        assert distance(untouched, initial) < 1e-4
        for chosen in (groups, groups[:1]):
            hosts[world].step(plan(chosen, algorithm, world), payloads)
        after, manifest, _ = hosts[world].pack()
        assert distance(after, expected) / distance(initial, expected) < 1e-4
        ids = torch.tensor(manifest.canary.token_ids)
        with torch.no_grad():
            logprobs = merged(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(manifest.canary.logprobs), logprobs, atol=5e-4, rtol=0)
        hosts[world].call("export", str(tmp_path / str(world)))
        adapted = PeftModel.from_pretrained(load_plain(model), str(tmp_path / str(world) / "adapter"))
        of_peft = parameters_of(adapted.merge_and_unload())
        exported = parameters_of(load_plain(str(tmp_path / str(world))))
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, of_peft[name], rtol=1e-5, atol=1e-6)
            assert torch.equal(tensor, exported[name])


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_under_dora_the_reference_policy_is_the_initial_one(
    hosts: dict[int, Hosts], model: str, zero_stage: int
) -> None:
    algorithm = AlgorithmConfig(beta=0.1)
    data = batch()
    config = replace(SGD, ranks=2, zero_stage=zero_stage, lora_rank=4, adapter="dora", gradient_checkpointing=True)
    hosts[2].begin(config, algorithm, model)
    hosts[2].step(plan(data[0], algorithm, 2), data[1])
    weights, *_ = hosts[2].pack()
    metrics = hosts[2].step(plan(data[0], algorithm, 2), data[1])
    expected = kl(load_plain(model, weights), load_plain(model), data, algorithm)
    assert expected > 1e-4
    assert metrics["policy/kl_ref"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: no lock has it")
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize(("world", "zero_stage"), [(1, 0), (2, 2)])
def test_adapters_over_weights_of_4_bits_are_trained_and_published_dense(
    hosts: dict[int, Hosts], model: str, tmp_path: Path, adapter: Any, world: int, zero_stage: int
) -> None:
    algorithm = AlgorithmConfig(beta=0.1)
    data = batch()
    config = replace(SGD, ranks=world, zero_stage=zero_stage, lora_rank=4, adapter=adapter, quantization="nf4")
    hosts[world].begin(config, algorithm, model)
    base, *_ = hosts[world].pack()
    initial = parameters_of(load_plain(model))
    # 16 levels: some percent off, and only the linear layers of the two decoder layers.
    off = {name for name, tensor in initial.items() if not torch.equal(tensor, base[name])}
    assert len(off) == 2 * 7
    assert 0.01 < distance(base, initial) / sum(float(initial[name].square().sum()) for name in off) ** 0.5 < 0.2
    first = hosts[world].step(plan(data[0], algorithm, world), data[1])
    assert first["policy/kl_ref"] == pytest.approx(0, abs=1e-3)
    trained, manifest, _ = hosts[world].pack()
    assert {name for name, tensor in base.items() if not torch.equal(tensor, trained[name])} == off
    hosts[world].call("export", str(tmp_path))
    merged = load_plain(str(tmp_path))
    assert all(torch.equal(trained[name], tensor) for name, tensor in parameters_of(merged).items())
    ids = torch.tensor(manifest.canary.token_ids)
    with torch.no_grad():
        logprobs = merged(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(manifest.canary.logprobs), logprobs, atol=1e-3, rtol=0)


INPUTS = torch.tensor([[[1.0, 10.0, 100.0], [2.0, 20.0, 0.0]], [[3.0, 0.0, 300.0], [0.0, 30.0, 0.0]]])
"""(ranks, micro-batches, weights): gradients of each pass."""


def gradient_used(_: Any, zero_stage: int, way: str) -> list[float] | str:
    """What DeepSpeed makes of INPUTS in one update; or the error's type. On one rank of two."""
    import deepspeed

    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": zero_stage, "reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000},
        "zero_allow_untested_optimizer": True,
        **({"gradient_allreduce_op": "sum"} if way == "sum" else {}),
    }
    try:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        for inputs in INPUTS[torch.distributed.get_rank()]:
            loss = engine(inputs).sum()
            if way == "loss.backward":
                loss.backward()
            else:
                engine.backward(loss, **({} if way == "engine" else {"scale_wrt_gas": False}))
            engine.step()
    except (RuntimeError, ValueError) as error:  # its refusals
        return type(error).__name__
    with deepspeed.zero.GatheredParameters([model.weight], enabled=zero_stage == 3):
        used = (-model.weight.detach()).flatten().tolist()
    engine.destroy()
    return used


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_scales_gradients_as_the_learner_expects(
    hosts: dict[int, Hosts], model: str, zero_stage: int
) -> None:
    """What `deepspeed_engine.backward` relies on: a release that scales otherwise shows here."""
    hosts[2].begin(replace(SGD, ranks=2), AlgorithmConfig(), model)  # joins the ranks
    true = INPUTS.sum((0, 1))
    used = {way: hosts[2].run(gradient_used, zero_stage, way) for way in ("engine", "unscaled", "loss.backward", "sum")}
    assert used["engine"] == [(true / 4).tolist()] * 2
    assert used["unscaled"] == [(true / 2).tolist()] * 2  # the learner's way: times the number of ranks
    assert used["loss.backward"] == (["RuntimeError"] * 2 if zero_stage == 0 else used["engine"])
    assert used["sum"] == (["ValueError"] * 2 if zero_stage == 3 else [true.tolist()] * 2)
