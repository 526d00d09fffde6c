"""What `learner.py` measures, each in a process of its own: one optimizer step, or the loss part alone, three ways.

All of a part compute the same numbers from the same batch; the gradient's norm is printed to show it.
"""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.learner import LearnerRank
from funicular.actors.packing import MicroBatch, PlannedRow, SharePrompts, pairs_of, tokens_of
from funicular.actors.policy import enable_gradient_checkpointing
from funicular.actors.step_plan import StepPlan, plan_step
from funicular.actors.token_logprobs import CPU_TILING, GPU_TILING, token_logprobs
from funicular.actors.types import GroupPayload
from tests.builders import make_group, make_payload

ALGORITHM = AlgorithmConfig(loss="bnpo", importance_correction="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One measurement."""

    model: str
    """Folder."""
    groups: int
    group: int
    prompt_tokens: int
    min_completion_tokens: int
    """0: a quarter of the longest."""
    max_completion_tokens: int
    micro_batch_tokens: int
    checkpointing: bool
    compute_dtype: str
    device: str
    threads: int
    steps: int
    trl: str
    """Folder that has TRL installed, or empty."""
    head_tokens: int
    head_vocabulary: int
    head_width: int

    @property
    def lengths_G(self) -> list[int]:
        """Completion lengths of each group: from the shortest to the longest, evenly."""
        shortest = self.min_completion_tokens or self.max_completion_tokens / 4
        return [round(x) for x in np.linspace(shortest, self.max_completion_tokens, self.group)]

    @property
    def trained_tokens(self) -> int:
        """Completions."""
        return self.groups * sum(self.lengths_G)

    @property
    def tokens(self) -> int:
        """Prompts and completions."""
        return self.groups * self.group * self.prompt_tokens + self.trained_tokens


def payloads_of(work: Work, vocabulary: int) -> dict[str, GroupPayload]:
    """The groups' random tokens."""
    names = [f"g{index}" for index in range(work.groups)]
    options: dict[str, Any] = {"lengths_G": work.lengths_G, "prompt_tokens": work.prompt_tokens}
    return {name: make_payload(name, **options, vocabulary=vocabulary, seed=0) for name in names}


def plan_of(work: Work, *, packed: bool, share_prompts: SharePrompts = "off") -> StepPlan:
    """One optimizer batch, half of each group's completions rewarded."""
    groups = [
        make_group(
            f"g{index}",
            rewards_G=[float(i % 2) for i in range(work.group)],
            lengths_G=work.lengths_G,
            prompt_tokens=work.prompt_tokens,
        )
        for index in range(work.groups)
    ]
    cut = (1, work.micro_batch_tokens, work.max_completion_tokens)
    return plan_step(groups, ALGORITHM, *cut, packed=packed, share_prompts=share_prompts)


def padded_rows(work: Work) -> list[tuple[PlannedRow, ...]]:
    """Rows of each padded pass."""
    return [micro.rows for micro in plan_of(work, packed=False).ranks[0].optimizer_batches[0]]


def _dtype(work: Work) -> Any:
    return getattr(torch, work.compute_dtype)


def ours(work: Work) -> dict[str, Any]:
    """`LearnerRank.fetch` and `step`: DeepSpeed without ZeRO, packed rows, prompts shared, tiles of logits."""
    return _ours(work, "auto")


def ours_unshared(work: Work) -> dict[str, Any]:
    """The same, a prompt for each row."""
    return _ours(work, "off")


def _ours(work: Work, share_prefix: SharePrompts) -> dict[str, Any]:
    import deepspeed  # noqa: F401  # counted among the imports
    import ray

    from funicular.cluster.rendezvous import free_address

    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    measure = Measure(work)
    config = LearnerConfig(
        compute_dtype=work.compute_dtype,  # type: ignore[arg-type]
        micro_batch_tokens=work.micro_batch_tokens,
        gradient_checkpointing=work.checkpointing,
        learning_rate=1e-6,
        cpu_threads=work.threads,
        max_grad_norm=0.0,
        share_prefix=share_prefix,
    )
    rank = LearnerRank(0, 1, config, ALGORITHM, temperature=1.0, model_folder=work.model, seed=0)
    rank.start(*free_address())
    causal_lm = rank._causal_lm
    payloads = payloads_of(work, causal_lm.config.vocab_size)
    plan = plan_of(work, packed=rank._packed, share_prompts=share_prefix if rank._shares_prompts else "off")
    refs = {name: [ray.put(payload)] for name, payload in payloads.items()}

    def step() -> float:
        rank.fetch(refs)
        return rank.step(plan.ranks[0]).metrics["policy/grad_norm"]

    passes = plan.ranks[0].optimizer_batches[0]
    return measure.steps(step) | {
        "packed": rank._packed,
        "flop": flop_of(causal_lm, passes),
        "flop_per_s": flop_per_s(work),
        "pass_tokens": plan.metrics["perf/pass_tokens"],
        "pass_tokens_unshared": plan.metrics["perf/pass_tokens_unshared"],
        "floor": floor_of(
            work,
            causal_lm,
            max(sum(tokens_of(tree) for tree in micro.trees) for micro in passes),
            max(sum(row.completion_tokens for row in micro.rows) for micro in passes),
        ),
    }


def plain(work: Work) -> dict[str, Any]:
    """transformers as one would write it: padded rows, logits of all tokens, log_softmax, torch's AdamW."""
    from transformers import AutoModelForCausalLM

    measure = Measure(work)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device).eval()
    if work.checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    payloads = payloads_of(work, model.config.vocab_size)
    passes = [_padded(rows, payloads, work.device) for rows in padded_rows(work)]

    def step() -> float:
        for batch in passes:
            ids, mask = batch["ids"], batch["mask"]
            with torch.autocast(work.device, dtype=_dtype(work), enabled=work.compute_dtype != "float32"):
                logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
            all_logprobs = torch.log_softmax(logits[:, :-1].float(), -1)
            logprobs = all_logprobs.gather(2, ids[:, 1:, None])[..., 0]
            with torch.no_grad():
                batch["entropy"] = -(all_logprobs.exp() * all_logprobs).sum(-1)
            ratio = torch.exp(logprobs - logprobs.detach())
            clipped = ratio.clamp(0.8, 1.2)
            advantages = batch["advantages"][:, None]
            terms = -torch.minimum(ratio * advantages, clipped * advantages)
            ((terms * mask[:, 1:]).sum() / work.trained_tokens).backward()
        return _update(model, optimizer)

    return measure.steps(step)


def trl(work: Work) -> dict[str, Any]:
    """`GRPOTrainer.compute_loss` of TRL on its own trainer, loss_type dapo (a token mean over the optimizer batch),
    without generation, backward, torch's AdamW. Prompts padded on the left, completions on the right."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    measure = Measure(work)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device)
    passes_rows = padded_rows(work)
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="funicular-bench-"),
        use_cpu=work.device == "cpu",
        bf16=work.compute_dtype == "bfloat16",
        report_to=[],
        num_generations=work.group,
        per_device_train_batch_size=work.group,
        gradient_accumulation_steps=1,
        gradient_checkpointing=work.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        loss_type="dapo",
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-6,
        use_vllm=False,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * work.group),
        processing_class=AutoTokenizer.from_pretrained(work.model),
    )
    if work.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    payloads = payloads_of(work, model.config.vocab_size)
    inputs = [_trl_inputs(rows, payloads, work) for rows in passes_rows]

    def step() -> float:
        for batch in inputs:
            trainer.compute_loss(model, batch).backward()
        return _update(model, optimizer)

    return measure.steps(step)


def _update(model: Any, optimizer: torch.optim.Optimizer) -> float:
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _padded(rows: tuple[PlannedRow, ...], payloads: Mapping[str, GroupPayload], device: str) -> dict[str, torch.Tensor]:
    width = max(row.length for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    attention_mask, mask = np.zeros_like(ids), np.zeros((len(rows), width), dtype=np.float32)
    for index, row in enumerate(rows):
        payload = payloads[row.group_id]
        ids[index, : row.prompt_tokens] = payload.prompt_ids
        ids[index, row.prompt_tokens : row.length] = payload.token_ids[payload.completion(row.completion)]
        attention_mask[index, : row.length] = 1
        mask[index, row.prompt_tokens : row.length] = 1
    arrays = {
        "ids": ids,
        "attention_mask": attention_mask,
        "mask": mask,
        "advantages": np.array([row.advantage for row in rows], dtype=np.float32),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _trl_inputs(
    rows: tuple[PlannedRow, ...], payloads: Mapping[str, GroupPayload], work: Work
) -> dict[str, torch.Tensor]:
    batch = _padded(rows, payloads, work.device)
    prompt = work.prompt_tokens  # all prompts are equally long, and need no padding
    return {
        "prompt_ids": batch["ids"][:, :prompt],
        "prompt_mask": batch["attention_mask"][:, :prompt],
        "completion_ids": batch["ids"][:, prompt:],
        "completion_mask": batch["attention_mask"][:, prompt:],
        "advantages": batch["advantages"],
        "num_items_in_batch": torch.tensor(float(work.trained_tokens), device=work.device),
    }


def _head_inputs(work: Work) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(work.head_tokens, work.head_width, device=work.device, requires_grad=True)
    weight = torch.randn(work.head_vocabulary, work.head_width, device=work.device).mul_(work.head_width**-0.5)
    labels = torch.randint(work.head_vocabulary, (work.head_tokens,), device=work.device)
    return hidden, weight.requires_grad_(), labels


def head_ours(work: Work) -> dict[str, Any]:
    """`token_logprobs`: log-probabilities, entropies, and the gradient of the first."""
    return _head(work, lambda h, w, y: token_logprobs(h, w, y, product_dtype=_dtype(work)))


def head_plain(work: Work) -> dict[str, Any]:
    """Logits of all tokens."""

    def logprobs(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
        with torch.autocast(work.device, dtype=_dtype(work), enabled=work.compute_dtype != "float32"):
            logits = torch.nn.functional.linear(hidden, weight)
        all_logprobs = torch.log_softmax(logits.float(), -1)
        del logits
        with torch.no_grad():
            entropies = -(all_logprobs.exp() * all_logprobs).sum(-1)
        return all_logprobs.gather(1, labels[:, None])[:, 0], entropies

    return _head(work, logprobs)


def head_trl(work: Work) -> dict[str, Any]:
    """TRL's `ChunkedLogProbFunction`, with the chunk of words and outputs that its GRPO trainer asks for."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer import utils

    words = utils._CHUNKED_LOGPROB_CHUNK_SIZE

    def logprobs(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
        with torch.autocast(work.device, dtype=_dtype(work), enabled=work.compute_dtype != "float32"):
            out = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, words, None, 1.0, ("entropy",))
        return out[0], out[1]

    return _head(work, logprobs)


def _head(work: Work, logprobs: Callable[..., tuple[torch.Tensor, Any]]) -> dict[str, Any]:
    hidden, weight, labels = _head_inputs(work)
    measure = Measure(work)

    def step() -> float:
        logprobs(hidden, weight, labels)[0].sum().backward()
        norm = float(hidden.grad.norm())  # type: ignore[union-attr]
        hidden.grad = weight.grad = None
        return norm

    return measure.steps(step, tokens=work.head_tokens)


VARIANTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "ours": ours,
    "ours_unshared": ours_unshared,
    "plain": plain,
    "trl": trl,
    "head_ours": head_ours,
    "head_plain": head_plain,
    "head_trl": head_trl,
}


class Measure:
    """Peak memory from here on, and seconds of steps. Make it after imports, and before what is to be counted."""

    def __init__(self, work: Work) -> None:
        self._work = work
        if work.model:
            _import_model(work.model)
        self._cuda = work.device == "cuda"
        torch.set_num_threads(work.threads)
        gc.collect()
        self._before = torch.cuda.memory_allocated() if self._cuda else _status("VmRSS")

    def steps(self, step: Callable[[], float], tokens: int = 0) -> dict[str, Any]:
        """A first step, which makes the optimizer's state, then timed ones."""
        self._reset_peak()
        norm = step()
        seconds, cpu_seconds = [], []
        for _ in range(self._work.steps):
            began, cpu_began = time.perf_counter(), time.process_time()
            step()
            if self._cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
        peak = torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        return {
            "norm": norm,
            "seconds": min(seconds),
            "cpu_seconds": min(cpu_seconds),
            "tokens_per_s": (tokens or self._work.tokens) / min(seconds),
            "before": self._before,
            "peak": peak,
            "above": peak - self._before,
        }

    def _reset_peak(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # what loading took for a moment is not the step's


def _import_model(folder: str) -> None:
    """The model's and its tokenizer's code, which transformers imports when it is first asked for."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM._model_mapping[type(config)]
    AutoTokenizer.from_pretrained(folder)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def flop_of(causal_lm: Any, passes: Sequence[MicroBatch]) -> float:
    """Of the matrix products of a step, forward and backward, each computed once, without pairs that a mask hides."""
    config = causal_lm.config
    layers = sum(p.numel() for p in causal_lm.model.layers.parameters() if p.ndim == 2)
    head = causal_lm.get_output_embeddings().weight.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * head_dim
    trees = [tree for micro in passes for tree in micro.trees]
    tokens, pairs = sum(map(tokens_of, trees)), sum(map(pairs_of, trees)) / 2
    trained = sum(row.completion_tokens for tree in trees for row in tree)
    return 6.0 * (layers * tokens + head * trained + attention * pairs)


def flop_per_s(work: Work) -> float:
    """Of a large product, the best of a few."""
    a, b = (torch.randn(2048, 2048, device=work.device, dtype=_dtype(work)) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def floor_of(work: Work, causal_lm: Any, tokens: int, trained: int) -> dict[str, int]:
    """Bytes that a step of this kind cannot do without, in float32.

    Args:
        tokens: of the largest pass.
        trained: of the largest pass, at most.
    """
    config = causal_lm.config
    parameters = sum(p.numel() for p in causal_lm.parameters())
    width, layers = config.hidden_size, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
    key_width = config.num_key_value_heads * head_dim
    # Of one layer: normed inputs, queries, keys, values before and after rotation, attention's output, the residual;
    # gate, up, activation and product of the MLP.
    per_layer = 7 * width + 4 * key_width + 4 * config.intermediate_size
    itemsize = _dtype(work).itemsize
    inside = tokens * (per_layer + 2 * config.intermediate_size) * itemsize  # and the MLP's gradients
    kept = layers * tokens * width * 4 if work.checkpointing else (layers - 1) * tokens * per_layer * itemsize
    tiling = GPU_TILING if work.device == "cuda" else CPU_TILING
    embeddings = causal_lm.get_input_embeddings().weight.numel()
    tied = causal_lm.get_output_embeddings().weight is causal_lm.get_input_embeddings().weight
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": kept + inside,
        "hidden states of the head": 2 * trained * width * 4,
        "gradient of the tied embedding, once more": 4 * embeddings if tied else 0,
        "tiles": 3 * tiling.tile_bytes + min(tiling.kept_bytes, 4 * trained * config.vocab_size),
    }
