"""Whole training steps, ours and TRL's GRPOTrainer's: same model, prompts, group size, lengths and optimizer steps.

    python tests/bench/end_to_end.py --trl FOLDER
    python tests/bench/end_to_end.py --trl FOLDER --dtype bfloat16 --max-staleness 0 1

`--trl` is a folder that `pip install --no-deps --target FOLDER trl==1.16.0` has filled. TRL's trainer generates with
transformers, its way without a second engine. Both sample at temperature 1 and learn a step's completions in one pass;
the first step is not timed. Ours leaves out groups whose gradient is 0. Memory is the proportional set size of all the
variant's processes together, read once a second: in all, and above what the same processes take when they have only
imported what they need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
RECIPE = "embedded"
PROMPT_TOKENS = 128
"""At most, of a task of the recipe."""
TRL_IMPORTS = ("import torch, accelerate, datasets, transformers; from trl import GRPOConfig, GRPOTrainer",)
OUR_IMPORTS = (
    "import funicular.launch.build, funicular.launch.train",
    "import ray; ray.init(address='local', include_dashboard=False, logging_level='ERROR', log_to_driver=False)",
    "import funicular.actors.learner, deepspeed, transformers",
    "import funicular.actors.generator, transformers, vllm.v1.engine.async_llm",
    "import vllm.v1.engine.core, vllm.v1.worker.cpu_worker, funicular.actors.vllm_compat",
    "import funicular.actors.scorer, ray",
    "import funicular.actors.buffer, ray",
)
"""Of the driver, Ray, learner, generator, engine, scorer and buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What both do."""

    steps: int
    """Training steps, the first of which is not timed."""
    groups: int
    group_size: int
    max_completion_tokens: int
    dtype: str
    """Type of the learner's matrix products; parameters are float32. Ours generates in it, too."""
    learning_rate: float
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One variant's figures, over the timed steps."""

    step_s: float
    completions_per_s: float
    prompt_tokens: float
    """Of a step; a prompt counts once for each completion."""
    completion_tokens: float
    peak_gib: float
    memory: dict[str, float]
    """GiB at the peak by kind of process."""
    parts: dict[str, float]
    """Seconds of a step by part."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-completion-tokens", type=int, default=16)
    parser.add_argument("--dtype", nargs="*", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--max-staleness", nargs="*", type=int, default=[0, 1], help="ours, once for each")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trl", default="", help="folder with TRL in it")
    parser.add_argument("--deadline-s", type=float, default=1800.0, help="of each variant")
    parser.add_argument("override", nargs="*", help="key=value for our recipe, of every variant of ours")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(command: list[str], cwd: Path, environment: dict[str, str], deadline_s: float) -> dict[str, float]:
    """Run a variant to its end; GiB by kind of process at its peak.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    from tests.bench.process_memory import PeakMemory

    with (cwd / "output").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        memory = PeakMemory(process.pid)
        try:
            status = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(120)
            raise RuntimeError(f"not done within {deadline_s:.0f} s") from None
        finally:
            memory.stop()
        if status:
            output.seek(0)
            raise RuntimeError(f"exit status {status}: ...{output.read()[-2000:]}")
    return {kind: size / GIB for kind, size in memory.parts.items()}


def ours(work: Work, max_staleness: int, overrides: list[str], cwd: Path, deadline_s: float) -> Outcome:
    """`funicular train` on the embedded recipe; steps and tokens from its metrics.jsonl."""
    from funicular.launch.metrics_file import read_metrics

    settings = {
        "run_dir": str(cwd / "run"),
        "max_steps": work.steps,
        "max_staleness": max_staleness,
        "algorithm.groups_per_step": work.groups,
        "algorithm.group_size": work.group_size,
        "generator.max_completion_tokens": work.max_completion_tokens,
        "generator.dtype": work.dtype,
        "learner.compute_dtype": work.dtype,
        "learner.learning_rate": work.learning_rate,
        "learner.micro_batch_tokens": work.groups * work.group_size * (PROMPT_TOKENS + work.max_completion_tokens),
        "evaluation.tasks": 0,
        "checkpoint.every": 0,
        "tracking.mlflow": "false",
        "tracking.completions_every": 0,
        "tracking.traces_per_step": 0,
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "funicular.launch.cli", "train", "-c", RECIPE, *words, *overrides]
    memory = run(command, cwd, dict(os.environ), deadline_s)
    steps = [line for line in read_metrics(cwd / "run" / "metrics.jsonl") if "time/step_s" in line][1:]

    def mean(name: str) -> float:
        return statistics.fmean(line[name] for line in steps)

    completions = work.groups * work.group_size
    return Outcome(
        step_s=mean("time/step_s"),
        completions_per_s=completions / mean("time/step_s"),
        prompt_tokens=completions * mean("rollout/prompt_len_mean"),
        completion_tokens=completions * mean("rollout/completion_len_mean"),
        peak_gib=sum(memory.values()),
        memory=memory,
        parts={
            "wait": mean("time/wait_groups_s"),
            "learn": mean("time/learn_s"),
            "sync": mean("time/weight_sync_s"),
        },
    )


def trl(work: Work, folder: str, cwd: Path, deadline_s: float) -> Outcome:
    """GRPOTrainer in a process of its own."""
    path = [str(ROOT), folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, __file__, "--child", json.dumps(asdict(work) | {"result": str(cwd / "result.json")})]
    memory = run(command, cwd, environment, deadline_s)
    return Outcome(**json.loads((cwd / "result.json").read_text()), peak_gib=sum(memory.values()), memory=memory)


def trl_child(given: dict[str, Any]) -> None:
    """Train with TRL and write what it cost."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from funicular.launch.models import resolve_model
    from funicular.launch.recipe import load_recipe
    from funicular.launch.tasks import load_tasks

    result = given.pop("result")
    work = Work(**given)
    torch.set_num_threads(work.threads)
    config = load_recipe([RECIPE], []).config
    tasks = load_tasks(config.data, config.reward.verifier, config.seed).iterator(config.seed)
    drawn = [tasks.next() for _ in range(work.steps * work.groups)]
    rows = [{"prompt": _messages(task.prompt), "answer": task.answer} for task in drawn]
    folder = str(resolve_model(config.model.path))
    completions = work.groups * work.group_size
    seconds: list[float] = []
    tokens: list[tuple[float, float]] = []
    began: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - began[-1])

    def reward(completions: list[Any], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        tokens.append((0.0, float(sum(map(len, completion_ids)))))
        return [float(text.strip().rstrip(".").endswith(right)) for text, right in zip(texts, answer, strict=True)]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="funicular-bench-"),
            use_cpu=True,
            bf16=work.dtype == "bfloat16",
            report_to=[],
            save_strategy="no",
            max_steps=work.steps,
            num_generations=work.group_size,
            per_device_train_batch_size=completions,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            max_completion_length=work.max_completion_tokens,
            learning_rate=work.learning_rate,
            lr_scheduler_type="constant",
            loss_type="grpo",
            beta=0.0,
            temperature=1.0,
            shuffle_dataset=False,
            disable_tqdm=True,
            use_vllm=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )
    trainer.train()
    prompts = trainer.processing_class.apply_chat_template([row["prompt"] for row in rows], add_generation_prompt=True)
    prompt_tokens = statistics.fmean(len(prompt) for prompt in _ids(prompts)) * completions
    outcome = {
        "step_s": statistics.fmean(seconds[1:]),
        "completions_per_s": completions / statistics.fmean(seconds[1:]),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": statistics.fmean(count for _, count in tokens[1:]),
        "parts": {},
    }
    Path(result).write_text(json.dumps(outcome))


def _messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _ids(rendered: Any) -> list[list[int]]:
    return rendered["input_ids"] if hasattr(rendered, "keys") else rendered


def product_rate(dtype: str, threads: int) -> float:
    """FLOP/s of matrix products of this machine, in a process of its own, best of five."""
    code = (
        "import sys, time, torch\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "a = torch.randn(2048, 2048).to(getattr(torch, sys.argv[1])); b = a.clone(); best = 1e9\n"
        "for _ in range(6):\n"
        "    began = time.perf_counter(); a @ b; best = min(best, time.perf_counter() - began)\n"
        "print(2 * 2048**3 / best)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, dtype, str(threads)], capture_output=True, text=True, check=True, timeout=300
    )
    return float(done.stdout)


def parameters_of(recipe: str) -> int:
    """Number of the model's parameters, the tied embedding once."""
    from safetensors import safe_open

    from funicular.launch.models import resolve_model
    from funicular.launch.recipe import load_recipe

    folder = Path(resolve_model(load_recipe([recipe], []).config.model.path))
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                count += size
    return count


def show(name: str, outcome: Outcome, imports_gib: float, bound_s: float) -> None:
    """One line, its parts, and where memory was at its peak."""
    print(
        f"{name:<34}{outcome.step_s:>8.2f}{outcome.completions_per_s:>10.2f}"
        f"{outcome.completion_tokens:>8.0f}{outcome.prompt_tokens:>8.0f}{outcome.peak_gib:>8.2f}"
        f"{outcome.peak_gib - imports_gib:>8.2f}{outcome.step_s / bound_s:>9.1f}x",
        flush=True,
    )
    if outcome.parts:
        print("  seconds: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in outcome.parts.items()))
    largest = sorted(outcome.memory.items(), key=lambda item: -item[1])
    print("  GiB: " + ", ".join(f"{kind} {size:.2f}" for kind, size in largest if size >= 0.05), flush=True)


def compare(name: str, outcome: Outcome, imports_gib: float, base: tuple[str, Outcome, float]) -> None:
    """A variant against one of TRL."""
    other, trl_outcome, trl_imports_gib = base
    above = (outcome.peak_gib - imports_gib) / (trl_outcome.peak_gib - trl_imports_gib)
    print(
        f"  {name}: {trl_outcome.step_s / outcome.step_s:.2f} x the steps per second of {other}, "
        f"{outcome.peak_gib / trl_outcome.peak_gib:.2f} x its memory, {above:.2f} x its memory above imports",
        flush=True,
    )


def main() -> None:
    """Measure what the command line asks for."""
    options = arguments()
    sys.path.insert(0, str(ROOT))
    from tests.bench.process_memory import imports_bytes

    if options.child:
        trl_child(json.loads(options.child))
        return
    print("command: python", " ".join(map(shlex.quote, sys.argv)))
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    count = parameters_of(RECIPE)
    imports = {"ours": imports_bytes(OUR_IMPORTS) / GIB}
    if options.trl:
        with_trl = f"import sys; sys.path.insert(0, {options.trl!r}); {TRL_IMPORTS[0]}"
        imports["TRL"] = imports_bytes([with_trl]) / GIB
    print("imports alone, GiB: " + ", ".join(f"{name} {size:.2f}" for name, size in imports.items()))
    bases: list[tuple[str, Outcome, float]] = []
    for dtype in options.dtype:
        work = Work(
            steps=options.steps,
            groups=options.groups,
            group_size=options.group_size,
            max_completion_tokens=options.max_completion_tokens,
            dtype=dtype,
            learning_rate=options.learning_rate,
            threads=options.threads,
        )
        rate = product_rate(dtype, work.threads)
        print(f"\n{dtype} products: {rate / 1e9:.0f} GFLOP/s; {count / 1e6:.0f} million parameters")
        head = f"{'':<34}{'step s':>8}{'compl./s':>10}{'tokens':>8}{'prompt':>8}{'GiB':>8}{'above':>8}{'of bound':>10}"
        print(head)
        variants: list[tuple[str, Any]] = []
        if options.trl:
            variants.append(("TRL", lambda cwd, w=work: trl(w, options.trl, cwd, options.deadline_s)))
        for staleness in options.max_staleness:
            variants.append(
                (
                    f"ours, max_staleness {staleness}",
                    lambda cwd, w=work, s=staleness: ours(w, s, options.override, cwd, options.deadline_s),
                )
            )
        for name, variant in variants:
            with tempfile.TemporaryDirectory(prefix="funicular-bench-") as cwd:
                try:
                    outcome = variant(Path(cwd))
                except RuntimeError as error:
                    print(f"{name:<34}{error}", flush=True)
                    continue
            # 2 N a token to generate, 6 N to learn, of prompts and completions alike.
            bound_s = 8 * count * (outcome.prompt_tokens + outcome.completion_tokens) / rate
            imports_gib = imports[name.partition(",")[0]]
            show(name, outcome, imports_gib, bound_s)
            if name == "TRL":
                bases.append((f"TRL, {dtype}", outcome, imports_gib))
                continue
            for base in bases:
                compare(name, outcome, imports_gib, base)


if __name__ == "__main__":
    main()
