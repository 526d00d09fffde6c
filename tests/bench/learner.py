"""Memory and speed of one optimizer step of the learner, against plain transformers and TRL.

    python tests/bench/learner.py --model tiny
    python tests/bench/learner.py --model smollm2-135m --group 8 --max-completion-tokens 1024 --trl FOLDER
    python tests/bench/learner.py --model smollm2-135m --groups 4 --prompt-tokens 45 --min-completion-tokens 16 \
        --max-completion-tokens 32 --no-checkpointing --trl FOLDER
    python tests/bench/learner.py --model tiny --groups 4 --prompt-tokens 1024 --min-completion-tokens 128 \
        --max-completion-tokens 128 --no-checkpointing
    python tests/bench/learner.py --part head --head-tokens 20000 --head-vocabulary 151936

`--trl` is a folder that `pip install --no-deps --target FOLDER trl==1.16.0` has filled. Each variant runs in a process
of its own; peaks are of that process, total and above what it took after its imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
STEP = ("ours", "ours_unshared", "plain", "trl")
HEAD = ("head_ours", "head_plain", "head_trl")
SAYS = {
    "ours": "ours: packed, prompts shared, DeepSpeed",
    "ours_unshared": "ours, a prompt for each row",
    "plain": "transformers: padded, logits of all tokens",
    "trl": "TRL: GRPOTrainer.compute_loss, padded",
    "head_ours": "ours: token_logprobs",
    "head_plain": "logits of all tokens",
    "head_trl": "TRL: ChunkedLogProbFunction",
}
RANDOM = {
    "random-150k": {
        "vocab_size": 151_936,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },  # 103 million parameters
    "random-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },  # as Qwen2.5-1.5B
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["step", "head", "all"], default="step")
    parser.add_argument("--model", default="tiny", help="tiny, smollm2-135m, random-150k, random-1.5b, or a folder")
    parser.add_argument("--groups", type=int, default=1, help="tasks")
    parser.add_argument("--group", type=int, default=8, help="completions of each")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-completion-tokens", type=int, default=192)
    parser.add_argument("--min-completion-tokens", type=int, default=0, help="0: a quarter of the longest")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations, in every variant")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=2, help="timed steps after the first; the fastest counts")
    parser.add_argument("--head-tokens", type=int, default=2000)
    parser.add_argument("--head-vocabulary", type=int, default=151_936)
    parser.add_argument("--head-width", type=int, default=1024)
    parser.add_argument("--only", nargs="*", choices=[*STEP, *HEAD], help="these variants only")
    parser.add_argument("--trl", default="", help="folder with TRL in it")
    parser.add_argument("--deadline-s", type=float, default=3600.0, help="of each variant")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def model_folder(name: str, scratch: Path) -> str:
    """The folder of a model, made if its name says so."""
    if name == "tiny":
        from tests.tiny import make_tiny_model

        return str(make_tiny_model(scratch / "tiny"))
    if name in RANDOM:
        return str(_random_model(scratch / name, RANDOM[name]))
    from funicular.launch.models import resolve_model

    return str(resolve_model(name))


def _random_model(folder: Path, sizes: dict[str, int]) -> Path:
    """A Qwen2 of these sizes, output head tied."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder))
    config = AutoConfig.for_model("qwen2", **sizes, tie_word_embeddings=True, max_position_embeddings=32_768)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(variant: str, work: dict[str, Any], deadline_s: float) -> dict[str, Any] | str:
    """A variant's figures, or why there are none."""
    if "trl" in variant and not work["trl"]:
        return "skipped: no --trl FOLDER"
    from funicular.cluster.session import worker_environment

    path = [str(ROOT), *filter(None, [work["trl"], os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "TRL_EXPERIMENTAL_SILENCE": "1"}
    if variant.startswith("ours"):
        environment |= worker_environment()  # as a learner rank has it in a run
    command = [sys.executable, __file__, "--child", json.dumps({"variant": variant, "work": work})]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return f"stopped after {deadline_s:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        return f"failed with status {done.returncode}{killed}: {lines[-1] if lines else ''}"
    return json.loads(done.stdout.splitlines()[-1])


def child(given: str) -> None:
    """One variant; its figures are the last line that it prints."""
    from tests.bench.learner_variants import VARIANTS, Work

    asked = json.loads(given)
    print(json.dumps(VARIANTS[asked["variant"]](Work(**asked["work"]))))


def table(variants: tuple[str, ...], work: dict[str, Any], deadline_s: float) -> None:
    """Run and print."""
    print(f"\n{'':<46}{'peak MiB':>10}{'above':>10}{'seconds':>10}{'CPU s':>10}{'tokens/s':>10}  gradient's norm")
    found: dict[str, dict[str, Any]] = {}
    for variant in variants:
        result = run(variant, work, deadline_s)
        if isinstance(result, str):
            print(f"{SAYS[variant]:<46}{result}")
            continue
        found[variant] = result
        print(
            f"{SAYS[variant]:<46}{result['peak'] / MIB:>10.0f}{result['above'] / MIB:>10.0f}"
            f"{result['seconds']:>10.2f}{result['cpu_seconds']:>10.2f}{result['tokens_per_s']:>10.0f}  "
            f"{result['norm']:.6g}",
            flush=True,
        )
    ours = found.pop(variants[0], None)
    if ours is None:
        return
    for variant, result in found.items():
        print(
            f"  {SAYS[variant]}: {result['above'] / ours['above']:.2f} x our memory, "
            f"{result['seconds'] / ours['seconds']:.2f} x our time, "
            f"{result['cpu_seconds'] / ours['cpu_seconds']:.2f} x our CPU time"
        )
    if "floor" in ours:
        total = sum(ours["floor"].values())
        parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in ours["floor"].items())
        print(f"  floor {total / MIB:.0f} MiB ({parts})")
        print(f"  ours takes {ours['above'] / total:.2f} x the floor above its imports; packed: {ours['packed']}")
        giga, rate = ours["flop"] / 1e9, ours["flop_per_s"] / 1e9
        print(
            f"  its products: {giga:.0f} GFLOP, {giga / rate:.2f} s at the {rate:.0f} GFLOP/s of large ones here;",
            end=" ",
        )
        print(f"ours takes {ours['seconds'] * rate / giga:.2f} x that")
        print(f"  tokens: {ours['pass_tokens']:.0f} of {ours['pass_tokens_unshared']:.0f}")


def main() -> None:
    """Measure what the command line asks for."""
    options = arguments()
    if options.child:
        child(options.child)
        return
    sys.path.insert(0, str(ROOT))
    from tests.bench.learner_variants import Work

    print("command: python", " ".join(map(shlex.quote, sys.argv)))
    load = os.getloadavg()[0]
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, load {load:.1f}")
    with tempfile.TemporaryDirectory(prefix="funicular-bench-") as scratch:
        fields = {field.name for field in dataclasses.fields(Work)} - {"model", "checkpointing"}
        values = {name: value for name, value in vars(options).items() if name in fields}
        folder = "" if options.part == "head" else model_folder(options.model, Path(scratch))
        work = Work(**values, model=folder, checkpointing=not options.no_checkpointing)
        asked = {"step": STEP, "head": HEAD, "all": (*STEP, *HEAD)}[options.part]
        chosen = [name for name in asked if not options.only or name in options.only]
        for part, size in ((STEP, f"{options.model}: {work.tokens} tokens"), (HEAD, "the head alone")):
            if variants := tuple(name for name in part if name in chosen):
                print(f"\n{size}, {work.compute_dtype} products", end="")
                table(variants, dataclasses.asdict(work), options.deadline_s)


if __name__ == "__main__":
    main()
