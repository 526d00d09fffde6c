"""Plans against published figures and against sums made by hand."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig

from funicular.actors.model_shape import ModelShape
from funicular.launch import model_shape
from funicular.launch.cli import main
from funicular.launch.config import Config
from funicular.launch.hardware import GPUS
from funicular.launch.model_shape import shape_from_config
from funicular.launch.plan import make_plan
from funicular.launch.plan_errors import predicted_memory, report_memory
from funicular.launch.plan_options import PlanOptions
from funicular.launch.recipe import load_recipe
from funicular.launch.run_folder import RunFolder

GIB = 1 << 30

QWEN = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def shape(kind: str, sizes: dict) -> ModelShape:
    return shape_from_config(AutoConfig.for_model(kind, **sizes))


@pytest.fixture(scope="module")
def qwen() -> ModelShape:
    return shape("qwen2", QWEN)


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape("llama", LLAMA_8B)


@pytest.fixture(scope="module")
def llama_70b() -> ModelShape:
    return shape("llama", LLAMA_70B)


def parts(found: tuple) -> dict[str, float]:
    return {part.name: part.nbytes for part in found}


def test_parameters_are_those_of_the_model_cards(qwen: ModelShape, llama: ModelShape, llama_70b: ModelShape) -> None:
    assert qwen.parameters == 7_615_616_512
    assert llama.parameters == 8_030_261_248
    assert llama_70b.parameters == 70_553_706_496


def test_a_token_of_the_cache_is_two_times_layers_times_key_heads_times_their_width(
    qwen: ModelShape, llama: ModelShape, llama_70b: ModelShape
) -> None:
    assert 2 * qwen.cache_values == 57_344
    assert 2 * llama.cache_values == 131_072
    assert 2 * llama_70b.cache_values == 327_680


def test_adapters_are_counted_as_peft_counts_them() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    small = AutoConfig.for_model(
        "qwen2",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = get_peft_model(
        AutoModelForCausalLM.from_config(small), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_from_config(small).adapter_parameters(8) == trained


def test_a_rank_of_zero_3_holds_its_share(qwen: ModelShape) -> None:
    config = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], []).config
    found = parts(make_plan(config, PlanOptions(device="h100"), qwen).learner)
    assert found["weights"] == pytest.approx(qwen.parameters * 2 / 4)
    assert found["gradients"] == pytest.approx(qwen.parameters * 4 / 4)
    assert found["adamw's state and master weights"] == pytest.approx(qwen.parameters * 12 / 4)
    longest = 28 * 8192 * 3584 * 2
    assert longest < found["activations"] < 2.5 * longest


def test_the_shipped_recipe_for_a_node_fits_and_one_rank_does_not(qwen: ModelShape) -> None:
    recipe = "gsm8k_qwen2.5_7b_8xh100"
    fits = make_plan(load_recipe([recipe], []).config, PlanOptions(device="h100"), qwen)
    assert fits.problems == []
    alone = make_plan(load_recipe([recipe], ["learner.ranks=1"]).config, PlanOptions(device="h100"), qwen)
    (problem,) = alone.problems
    assert "a learner rank needs" in problem
    assert "It fits with learner.ranks=2" in problem


@pytest.mark.parametrize("ranks", [8, 16])
def test_a_70b_model_with_adapters_fits_where_its_frozen_weights_do(llama_70b: ModelShape, ranks: int) -> None:
    values = [
        f"learner.ranks={ranks}",
        "learner.lora_rank=16",
        "generator.tensor_parallel_size=4",
        "learner.micro_batch_tokens=4096",
    ]
    config = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], values).config
    plan = make_plan(config, PlanOptions(device="h100"), llama_70b)
    found = parts(plan.learner)
    assert found["weights"] == pytest.approx(141.107e9 / ranks, rel=1e-3)
    assert found["adapters"] == pytest.approx(llama_70b.adapter_parameters(16) * 2 / ranks)
    assert plan.problems == []
    assert plan.room.tokens == pytest.approx((0.85 * 80e9 - 141.107e9 / 4) / (327_680 / 4), rel=1e-3)


def test_without_room_for_one_completion_the_plan_says_so(llama_70b: ModelShape) -> None:
    config = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], ["generator.tensor_parallel_size=1"]).config
    problems = make_plan(config, PlanOptions(device="h100"), llama_70b).problems
    assert any("It fits with generator.tensor_parallel_size=4" in problem for problem in problems)


def test_decoding_few_sequences_is_bound_by_reading_the_weights(llama: ModelShape) -> None:
    values = ["generator.max_sequences=1", "generator.count=1", "generator.tensor_parallel_size=1"]
    config = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], values).config
    options = PlanOptions(device="h100", prompt_tokens=1, completion_tokens=2)
    found = make_plan(config, options, llama).bounds
    assert found.decode_is_bound_by == "bandwidth"
    assert found.decode_rate == pytest.approx(GPUS["h100"].bandwidth / (llama.parameters * 2), rel=1e-3)
    assert (found.learn_tokens, found.learn_tokens_unshared) == (64 * (1 + 8 * 2), 64 * 8 * (1 + 2))
    assert found.learn_s == pytest.approx(10 * llama.products * found.learn_tokens / (4 * GPUS["h100"].flops))


def test_the_command_prints_a_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    AutoConfig.for_model("qwen2", **QWEN).save_pretrained(tmp_path / "model")
    words = ["plan", "-c", "gsm8k_qwen2.5_7b_8xh100", "--gpu", "h100", "--json", str(tmp_path / "plan.json")]
    status = main([*words, f"model.path={tmp_path / 'model'}"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "7.616 billion parameters" in said
    assert "589,824 tokens; 786,432 if completions did not share their prompt" in said
    assert "node 0    generator 0-1 x 2, learner 0-3" in said
    assert "algorithm.groups_per_step=64" in said
    assert f"model.path={tmp_path / 'model'}  command line" in said
    assert said.splitlines()[-1] == "fits"
    assert json.loads((tmp_path / "plan.json").read_text())["problems"] == []


def test_a_model_that_is_not_there_is_an_error_before_anything_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["plan", "-c", "gsm8k_qwen2.5_7b_8xh100", "model.path=nobody/nothing"]) == 2
    assert "model.path=nobody/nothing" in capsys.readouterr().err


SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
BFLOAT16 = ["generator.dtype=bfloat16", "learner.compute_dtype=bfloat16"]
"""What `auto` is on the machine whose runs were measured."""
FLOAT32 = ["generator.dtype=float32", "learner.compute_dtype=float32"]


@pytest.fixture(scope="module")
def smollm2() -> ModelShape:
    return shape("llama", SMOLLM2)


def test_on_a_cpu_a_rank_is_the_sum_of_what_it_allocates(smollm2: ModelShape) -> None:
    config = load_recipe(["embedded"], BFLOAT16).config
    found = parts(make_plan(config, PlanOptions(), smollm2).learner)
    assert found.pop("process") == 700 << 20
    assert found.pop("weights") == found.pop("gradients") == 4 * 134_515_008
    assert found.pop("adamw's state") == 8 * 134_515_008
    assert found.pop("object store: weight sets") == 2 * 2 * 134_515_008
    assert found.pop("weights in the products' type") == 2 * 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert found.pop("output head: tied gradient") == 4 * 49_152 * 576
    assert set(found) == {"activations", "output head: hidden states", "output head: logits"}
    plain = parts(make_plan(load_recipe(["embedded"], FLOAT32).config, PlanOptions(), smollm2).learner)
    assert "weights in the products' type" not in plain


def test_an_engine_on_a_cpu_keeps_a_tied_head_twice(smollm2: ModelShape) -> None:
    config = load_recipe(["embedded"], [*FLOAT32, "generator.kv_cache_gib=1"]).config
    plan = make_plan(config, PlanOptions(), smollm2)
    found = parts(plan.engine)
    assert found["weights"] + found["tied output head, packed"] == 4 * (134_515_008 + 49_152 * 576)
    assert found["KV cache"] == GIB
    assert plan.room.tokens == GIB / (2 * 30 * 3 * 64 * 4)


def write_metrics(folder: Path, *lines: dict) -> RunFolder:
    run = RunFolder.create(folder)
    run.metrics.write_text("".join(json.dumps({"step": 1, "attempt": 1, "time": 1.0, **line}) + "\n" for line in lines))
    return run


def test_a_run_writes_what_its_plan_was_worth_and_the_next_plan_says_it(
    smollm2: ModelShape, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_recipe(["embedded"], BFLOAT16).config
    planned = predicted_memory(config, smollm2)
    folder = write_metrics(
        tmp_path / "run",
        {"perf/learner_memory_gib": planned["learner"] / 2, "perf/engine_memory_gib": planned["engine"]},
        {"perf/learner_memory_gib": planned["learner"] / 1.25},
    )
    run = FakeRun(config=config, model_shape=smollm2)
    report_memory(run, folder)  # type: ignore[arg-type]
    assert run.metrics == pytest.approx({"plan/learner_memory_error": 0.25, "plan/engine_memory_error": 0.0})
    assert "(+25%)" in run.sentences[0]
    (tmp_path / "model").mkdir()
    AutoConfig.for_model("llama", **SMOLLM2).save_pretrained(tmp_path / "model")
    words = [f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", *BFLOAT16]
    assert main(["plan", "-c", "embedded", *words]) == 0
    assert "memory of an earlier run" in (said := capsys.readouterr().out)
    assert "(+25%)" in said


def test_the_next_plan_says_what_steps_took_beside_the_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funicular.launch.plan.this_machine", lambda: GPUS["l40s"])
    (tmp_path / "model").mkdir()
    AutoConfig.for_model("llama", **SMOLLM2).save_pretrained(tmp_path / "model")
    words = [f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"]
    lengths = {"rollout/prompt_len_mean": 40.0, "rollout/completion_len_mean": 10.0}
    seconds = {"time/generate_s": 2.0, "time/learn_s": 1.0, "time/weight_sync_s": 0.5}
    took = enumerate((90.0, 3.0, 4.0, 5.0), start=1)
    steps = [lengths | seconds | {"step": number, "time/step_s": step_s} for number, step_s in took]
    folder = write_metrics(tmp_path / "run", *steps)
    folder.config.write_text(load_recipe(["embedded"], words).text)
    assert main(["plan", "-c", "embedded", *words]) == 0
    said = capsys.readouterr().out
    assert "medians of 3 steps: generate 2.00 s, " in said
    assert "step 4.00 s, " in said
    for other in (["--gpu", "l40s", *words], [words[1]]):  # another device, another model
        assert main(["plan", "-c", "embedded", *other]) == 0
        assert "medians" not in capsys.readouterr().out


def test_a_run_on_gpus_is_not_compared_with_a_plan(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", {"perf/learner_memory_gib": 1.0})
    run = FakeRun(config=load_recipe(["embedded"], []).config, model_shape=None)
    report_memory(run, folder)  # type: ignore[arg-type]
    assert not (folder.path / "memory.json").exists()
    assert run.metrics == {}


class FakeRun:
    """A run that is over, which is its own tracker."""

    def __init__(self, *, config: Config, model_shape: ModelShape | None) -> None:
        self.config = config
        self.model_shape = model_shape
        self.step = 2
        self.tracker = self
        self.metrics: dict[str, float] = {}
        self.sentences: list[str] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def event(self, sentence: str) -> None:
        self.sentences.append(sentence)


def test_a_run_folder_of_another_version_is_named_with_what_its_recipe_says_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    AutoConfig.for_model("llama", **SMOLLM2).save_pretrained(tmp_path / "model")
    words = [f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"]
    folder = write_metrics(tmp_path / "run", {"time/step_s": 1.0})
    folder.config.write_text(load_recipe(["embedded"], words).text + "\nolder_key: 3\n")
    assert main(["plan", "-c", "embedded", *words]) == 0
    said = capsys.readouterr().out
    assert f"times of an earlier run in {folder.path}: not compared" in said
    assert "older_key" in said


def test_a_silent_hub_is_not_waited_for_and_its_cache_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoConfig.for_model("llama", **SMOLLM2).save_pretrained(tmp_path)
    cached = True

    def download(path: str, name: str, *, local_files_only: bool = False) -> str:
        if not local_files_only:
            threading.Event().wait(600)
        if not cached:
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(model_shape, "HUB_ANSWER_S", 0.05)
    words = ["plan", "-c", "gsm8k_qwen2.5_7b_8xh100", "--gpu", "h100", "model.path=nobody/nothing"]
    assert main(words) == 0
    cached = False
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "model.path=nobody/nothing: waited 0 s for an answer of the hub, and its cache has no config.json" in said
    assert "model.path=FOLDER" in said
