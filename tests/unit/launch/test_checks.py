"""Rules between values: each is broken once, and named with its key."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.checks import check, warn
from funicular.launch.config import Config
from funicular.launch.ranges import RANGES
from funicular.launch.schema_docs import keys


def changed(**values: Any) -> Config:
    """The default config with `section__key` or `key` replaced."""
    config = Config()
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        if section:
            value = replace(getattr(config, section), **{key: value})
        config = replace(config, **{section or key: value})
    return config


GIVEN = {"data__completion_column": "text", "algorithm__group_size": 1, "distillation__loss": "hard"}
"""A recipe without a fault."""


def problems(tmp_path: Path, **values: Any) -> dict[str, str]:
    return {problem.key: str(problem) for problem in check(changed(**values), tmp_path)}


def test_the_defaults_break_no_rule_and_raise_no_warning(tmp_path: Path) -> None:
    assert check(Config(), tmp_path) == []
    assert warn(Config()) == []


def test_completions_may_be_given_and_groups_that_no_reward_teaches_may_have_one_member(tmp_path: Path) -> None:
    assert problems(tmp_path, **GIVEN) == {}
    teacher = {"distillation__teacher": "owner/name"}
    assert problems(tmp_path, **{**GIVEN, "distillation__loss": "jsd"}, **teacher) == {}
    assert problems(tmp_path, algorithm__group_size=1, **teacher) == {}
    mixed = problems(tmp_path, algorithm__group_size=1, distillation__reward_coef=0.5, **teacher)
    assert set(mixed) == {"algorithm.group_size"}


def test_every_number_of_the_schema_has_a_range() -> None:
    assert set(RANGES) == {key.name for key in keys().values() if key.base in (int, float)}


@pytest.mark.parametrize(
    ("values", "key", "says"),
    [
        ({"algorithm__group_size": 1}, "algorithm.group_size", "at least 2"),
        ({"algorithm__groups_per_step": 0}, "algorithm.groups_per_step", "at least 1"),
        ({"algorithm__optimizer_batches": 9}, "algorithm.optimizer_batches", "a group is never split"),
        ({"algorithm__delta": 1.1}, "algorithm.delta", "above 1 + epsilon_high = 1.2"),
        ({"algorithm__loss": "cispo", "algorithm__ratio_cap": 0.28}, "algorithm.ratio_cap", "an absolute ratio"),
        ({"algorithm__beta": 0.1, "algorithm__kl_estimator": "k1"}, "algorithm.kl_estimator", "0 in expectation"),
        (
            {"algorithm__loss": "scalerl", "algorithm__importance_correction": "token_mask"},
            "algorithm.importance_correction",
            "would count twice",
        ),
        (
            {"algorithm__importance_correction": "token_mask", "algorithm__importance_cap": None},
            "algorithm.importance_cap",
            "a cap, or a floor",
        ),
        (
            {"algorithm__loss": "beta_normalization", "algorithm__scale_rewards": "group"},
            "algorithm.scale_rewards",
            "a normaliser of its own",
        ),
        (
            {"algorithm__loss": "vespo", "algorithm__importance_correction": "sequence_mask"},
            "algorithm.importance_correction",
            "vespo folds it",
        ),
        (
            {"algorithm__several_rewards": "normalize_then_sum", "algorithm__loss": "rloo"},
            "algorithm.baseline",
            "z-scores",
        ),
        (
            {
                "algorithm__loss": "reinforce_pp",
                "algorithm__beta": 0.1,
                "algorithm__kl_in": "token_reward",
                "algorithm__whiten_advantages": "completions",
            },
            "algorithm.whiten_advantages",
            "an advantage of its own",
        ),
        ({"algorithm__epsilon_low": 1.0}, "algorithm.epsilon_low", "above 0 and below 1"),
        ({"algorithm__beta": float("nan")}, "algorithm.beta", "at least 0"),
        ({"algorithm__importance_cap": 0.5}, "algorithm.importance_cap", "null turns it off"),
        (
            {"algorithm__zero_variance_groups": "replace", "algorithm__max_replacements": 0},
            "algorithm.max_replacements",
            "at least 1 try",
        ),
        ({"max_steps": -1}, "max_steps", "at least 0"),
        ({"max_staleness": -1}, "max_staleness", "at least 0"),
        ({"name": "a/b"}, "name", "can name a folder"),
        ({"checkpoint__path": " "}, "checkpoint.path", "a URI such as s3://"),
        ({"checkpoint__path": "s3://b", "name": "a/b", "run_dir": "x"}, "name", "checkpoint.path/NAME"),
        ({"checkpoint__keep_best": 1}, "checkpoint.keep_best", "no checkpoint is measured"),
        ({"checkpoint__best_metric": "reward/mean"}, "checkpoint.best_metric", "a metric of an evaluation"),
        ({"checkpoint__keep_best": -1}, "checkpoint.keep_best", "at least 0"),
        ({"checkpoint__deadline_s": 0}, "checkpoint.deadline_s", "seconds"),
        ({"resume": "atuo"}, "resume", "Did you mean auto?"),
        ({"cluster__address": "head"}, "cluster.address", "host:port"),
        ({"model__path": "smollm2-135"}, "model.path", "Did you mean smollm2-135m?"),
        ({"model__path": "./none"}, "model.path", "no such folder"),
        ({"model__chat_template": "plane"}, "model.chat_template", "Did you mean plain?"),
        ({"data__path": "arithmatic"}, "data.path", "Did you mean arithmetic?"),
        ({"data__path": "owner/train.jsonl"}, "data.path", "no such file"),
        ({"data__held_out_path": "none.jsonl"}, "data.held_out_path", "no such file"),
        ({"data__held_out_split": "test"}, "data.held_out_split", "no splits"),
        ({"data__held_out_fraction": 0.0}, "data.held_out_fraction", "evaluation.tasks=0"),
        ({"data__held_out_fraction": 1.0}, "data.held_out_fraction", "below 1"),
        ({"data__prompt_template": "prompt"}, "data.prompt_template", "{prompt}"),
        ({"data__answer_pattern": "("}, "data.answer_pattern", "not a regular expression"),
        ({"data__answer_pattern": "####"}, "data.answer_pattern", "no group"),
        ({"data__answer_column": None}, "data.answer_column", "reference answer"),
        ({"data__kinds": "add1,mull1"}, "data.kinds", "Did you mean mul1?"),
        ({"data__path": "code", "data__kinds": "call,stdio"}, "data.kinds", "Did you mean calls?"),
        ({"data__path": "needle", "data__kinds": "calls"}, "data.kinds", "have kinds. Set it to null"),
        ({"data__path": "reasoning-gym", "data__kinds": "sudoku,sudoku"}, "data.kinds", "stands there twice"),
        ({"data__path": "needles"}, "data.path", "Did you mean needle?"),
        ({"data__path": "needle", "data__held_out_split": "test"}, "data.held_out_split", "needle has no splits"),
        ({"data__needle_depths": "0,2"}, "data.needle_depths", "from 0 (begin) to 1 (end)"),
        ({"data__needle_words": 3}, "data.needle_words", "at least 20"),
        ({"data__path": "needle", "data__needle_count": 20}, "data.needle_words", "at least 280"),
        ({"data__template_columns": "tests"}, "data.template_columns", "data.prompt_template has no {tests}"),
        ({"data__system_prompt": "Hi", "data__chat": False}, "data.system_prompt", "data.chat=true"),
        ({"data__balance_column": "prompt"}, "data.balance_column", "other than"),
        ({"generator__temperature": 0.0}, "generator.temperature", "above 0"),
        ({"generator__min_completion_tokens": 300}, "generator.min_completion_tokens", "max_completion_tokens = 256"),
        (
            {"generator__min_completion_tokens": 3, "algorithm__importance_correction": "sequence_mask"},
            "generator.min_completion_tokens",
            "expected importance_correction token_truncate or token_mask",
        ),
        (
            {"data__structured_output_column": "form", "algorithm__loss": "scalerl"},
            "data.structured_output_column",
            "old_logprobs=learner",
        ),
        ({"generator__stop": ["</a>", ""]}, "generator.stop", "end every completion at once"),
        ({"generator__stop_token_ids": [2, -1]}, "generator.stop_token_ids", "at least 0"),
        ({"generator__stop_repetition_count": 1}, "generator.stop_repetition_count", "at least 2"),
        ({"generator__stop_repetition_tokens": 0}, "generator.stop_repetition_tokens", "at least 1"),
        ({"generator__engine_options": {"top_p": 0.9}}, "generator.engine_options.top_p", "could not reproduce them"),
        (
            {"generator__engine_options": {"logprobs_mode": "raw_logprobs"}},
            "generator.engine_options.logprobs_mode",
            "another distribution",
        ),
        (
            {"generator__engine_options": {"quantization": "fp8"}},
            "generator.engine_options.quantization",
            "refuse every version",
        ),
        (
            {"generator__engine_options": {"trust_remote_code": True}},
            "generator.engine_options.trust_remote_code",
            "no code of a model's folder is run",
        ),
        (
            {"generator__engine_options": {"max_num_seqs": 8}},
            "generator.engine_options.max_num_seqs",
            "Set generator.max_sequences",
        ),
        (
            {"generator__engine_options": {"enable_prefix_cache": True}},
            "generator.engine_options.enable_prefix_cache",
            "Did you mean enable_prefix_caching?",
        ),
        ({"generator__gpu_memory_fraction": 1.5}, "generator.gpu_memory_fraction", "at most 1"),
        ({"learner__zero_stage": 4}, "learner.zero_stage", "at most 3"),
        (
            {"learner__dtype": "bfloat16", "learner__zero_stage": 1},
            "learner.compute_dtype",
            "learner.compute_dtype=bfloat16",
        ),
        (
            {"learner__dtype": "bfloat16", "learner__compute_dtype": "bfloat16"},
            "learner.zero_stage",
            "learner.zero_stage=1",
        ),
        ({"learner__lora_rank": 8, "learner__lora_targets": ""}, "learner.lora_targets", "all-linear"),
        ({"learner__lora_rank": 8, "learner__lora_targets": "q_proj, lm_head"}, "learner.lora_targets", "all-linear"),
        ({"learner__offload_activations": True}, "learner.offload_activations", "learner.gradient_checkpointing=true"),
        ({"learner__optimizer": "muon", "learner__zero_stage": 2}, "learner.optimizer", "learner.zero_stage=0"),
        ({"learner__optimizer": "adafactor", "learner__zero_stage": 1}, "learner.optimizer", "flat pieces"),
        ({"learner__momentum": 1.0, "learner__optimizer": "sgd"}, "learner.momentum", "below 1"),
        ({"learner__min_lr_ratio": 2.0, "learner__schedule": "cosine"}, "learner.min_lr_ratio", "at most 1"),
        ({"learner__offload_optimizer": "cpu"}, "learner.offload_optimizer", "learner.zero_stage=1, 2 or 3"),
        (
            {"learner__offload_parameters": "cpu", "learner__zero_stage": 2},
            "learner.offload_parameters",
            "expected learner.zero_stage=3",
        ),
        ({"learner__adapter": "dora"}, "learner.adapter", "learner.lora_rank=16"),
        ({"learner__lora_rslora": True}, "learner.lora_rslora", "learner.lora_rank=16"),
        ({"weight_sync__lora": "adapter"}, "weight_sync.lora", "there is no adapter to send"),
        (
            {"weight_sync__lora": "adapter", "learner__lora_rank": 8, "learner__adapter": "dora"},
            "weight_sync.lora",
            "vLLM cannot serve dora",
        ),
        ({"weight_sync__lora": "adapter", "learner__lora_rank": 1000}, "weight_sync.lora", "rank 512 at most"),
        (
            {"weight_sync__lora": "adapter", "learner__lora_rank": 8, "learner__lora_targets": "q_proj, embed_tokens"},
            "weight_sync.lora",
            "no engine takes an adapter on embed_tokens",
        ),
        (
            {"weight_sync__lora": "adapter", "learner__lora_rank": 8, "weight_sync__transport": "delta"},
            "weight_sync.transport",
            "weight_sync.transport=auto",
        ),
        (
            {"generator__engine_options": {"max_lora_rank": 8}},
            "generator.engine_options.max_lora_rank",
            "refuse every version",
        ),
        (
            {"learner__lora_rank": 8, "algorithm__reference_mixup": 0.6},
            "algorithm.reference_mixup",
            "not the factors of the mixture",
        ),
        ({"algorithm__reference_mixup": 0.0}, "algorithm.reference_mixup", "above 0 and at most 1"),
        ({"learner__sequence_parallel": 0}, "learner.sequence_parallel", "at least 1"),
        ({"learner__sequence_parallel": 2}, "learner.sequence_parallel", "learner.ranks=1: groups of ranks share"),
        (
            {"learner__sequence_parallel": 2, "learner__ranks": 2, "learner__packing": False},
            "learner.packing",
            "learner.packing=true",
        ),
        ({"algorithm__num_iterations": 0}, "algorithm.num_iterations", "at least 1"),
        ({"distillation__teacher": "smollm-135m"}, "distillation.teacher", "Did you mean smollm2-135m?"),
        (
            {"distillation__teacher": "owner/name", "distillation__temperature": 2.0},
            "distillation.temperature",
            "the temperature that sampled them",
        ),
        ({"distillation__loss": "hard"}, "distillation.loss", "data.completion_column names none"),
        (
            {"data__completion_column": "text", "algorithm__group_size": 1},
            "data.completion_column",
            "Set distillation.loss=hard",
        ),
        (
            {"data__completion_column": "text", "algorithm__group_size": 1, "distillation__teacher": "owner/name"},
            "distillation.loss",
            "expected hard, jsd or forward_kl",
        ),
        ({**GIVEN, "algorithm__group_size": 8}, "algorithm.group_size", "expected 1"),
        ({**GIVEN, "distillation__teacher": "owner/name"}, "distillation.teacher", "expected null"),
        ({**GIVEN, "algorithm__beta": 0.1}, "algorithm.beta", "expected 0"),
        ({**GIVEN, "algorithm__old_logprobs": "generator"}, "algorithm.old_logprobs", "expected learner"),
        (
            {**GIVEN, "algorithm__importance_correction": "token_mask"},
            "algorithm.importance_correction",
            "expected auto or none",
        ),
        ({**GIVEN, "distillation__reward_coef": 1.0}, "distillation.reward_coef", "expected 0"),
        ({"distillation__jsd_beta": 1.5}, "distillation.jsd_beta", "at most 1"),
        ({"distillation__coef": -1.0}, "distillation.coef", "at least 0"),
        (
            {"distillation__teacher": "smollm2-135m", "algorithm__zero_variance_groups": "replace"},
            "algorithm.zero_variance_groups",
            "expected keep",
        ),
        (
            {"distillation__teacher": "smollm2-135m", "algorithm__beta": 0.1, "algorithm__kl_in": "reward"},
            "algorithm.kl_in",
            "nothing is learnt from rewards",
        ),
        ({"distillation__teacher": "owner/name", "algorithm__loss": "gspo"}, "algorithm.ratio_level", "gspo_token"),
        ({"distillation__teacher": "owner/name", "algorithm__loss": "gmpo"}, "algorithm.loss", "gspo_token"),
        ({"weight_sync__canary_tokens": 1000}, "weight_sync.canary_tokens", "at most"),
        ({"weight_sync__deadline_s": 0.0}, "weight_sync.deadline_s", "last for ever"),
        ({"weight_sync__transport": "cuda_ipc"}, "weight_sync.transport", "not built"),
        (
            {"sandbox__isolation": "L1", "sandbox__min_level": "L3"},
            "sandbox.isolation",
            "sandbox.min_level=L3 accepts nothing below",
        ),
        (
            {"sandbox__isolation": "L1", "reward__verifier": "code", "reward__verifier_options": {"language": "cpp"}},
            "sandbox.isolation",
            "reward.verifier_options.language=cpp needs processes",
        ),
        ({"sandbox__cpu_s": 0.0}, "sandbox.cpu_s", "above 0"),
        ({"sandbox__memory_mib": 8}, "sandbox.memory_mib", "at least 16"),
        ({"sandbox__slots": -1}, "sandbox.slots", "at least 0"),
        ({"reward__verifier": "maths"}, "reward.verifier", "Did you mean math?"),
        ({"reward__functions": {}}, "reward.functions", "at least one"),
        ({"reward__functions": {"correctness": 0.0}}, "reward.functions", "every weight is 0"),
        (
            {"reward__functions": {"corectness": 1.0}},
            "reward.functions.corectness",
            "Did you mean correctness?",
        ),
        (
            {"reward__functions": {"correctness": float("inf")}},
            "reward.functions.correctness",
            "finite",
        ),
        ({"reward__options": {"lenght": {}}}, "reward.options.lenght", "not in reward.functions"),
        ({"reward__options": {"correctness": 3}}, "reward.options.correctness", "keyword arguments"),
        (
            {"reward__functions": {"length": 1.0}, "reward__options": {"length": {"targt": 3}}},
            "reward.options.length.targt",
            "target",
        ),
        ({"reward__functions": {"length": 1.0}}, "reward.options.length", "exactly one"),
        ({"reward__gates": {"correctness": "format_tags"}}, "reward.gates.correctness", "with weight 0"),
        ({"reward__network": ["corectness"]}, "reward.network", "Did you mean correctness?"),
        ({"reward__memory_mib": 1}, "reward.memory_mib", "at least"),
        ({"reward__functions": {"mine.py:f": 1.0}}, "reward.functions.mine.py:f", "there is no file"),
        ({"tracking__registered_model": "a/b"}, "tracking.registered_model", "none with / or :"),
        ({"tracking__upload_model": True}, "tracking.upload_model", "Set tracking.registered_model"),
        ({"tracking__mlflow_uri": "https://me:pw@host"}, "tracking.mlflow_uri", "MLFLOW_TRACKING_PASSWORD"),
        ({"tracking__mlflow_uri": "http://TOKEN@host:5000"}, "tracking.mlflow_uri", "MLFLOW_TRACKING_TOKEN"),
        ({"tracking__mlflow_uri": "postgresql://me@firm:pw@host/db"}, "tracking.mlflow_uri", "PGPASSWORD"),
        ({"tracking__mlflow_uri": "postgresql://host/db?user=me&password=pw"}, "tracking.mlflow_uri", "PGPASSWORD"),
    ],
)
def test_a_broken_rule_names_its_key_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], key: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(tmp_path, **values)
    assert set(found) == {key}
    assert says in found[key]


def test_a_password_in_a_recipe_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (problem,) = check(changed(tracking__mlflow_uri="postgresql://me:geheim@host/db"), tmp_path)
    assert "tracking.mlflow_uri=postgresql://host/db" in str(problem)
    assert "geheim" not in str(problem)
    for harmless in ("postgresql://me@host:5432/db", "http://host:5000/a@b"):
        assert check(changed(tracking__mlflow_uri=harmless), tmp_path) == []


def test_broken_rules_come_all_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, max_steps=-1, reward__verifier="x", data__answer_pattern="(")
    assert set(found) == {"max_steps", "reward.verifier", "data.answer_pattern"}


def test_local_files_and_folders_that_exist_are_fine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "train.jsonl").touch()
    config = {"data__path": str(tmp_path / "train.jsonl"), "model__path": str(tmp_path / "model")}
    assert "config.json" in problems(tmp_path, **config)["model.path"]
    (tmp_path / "model" / "config.json").touch()
    assert problems(tmp_path, **config) == {}


def test_ranks_that_share_passes_divide_a_local_models_heads(tmp_path: Path) -> None:
    def found(size: int) -> dict[str, str]:
        model = {"model__path": str(tmp_path), "learner__ranks": size}
        return problems(tmp_path, **model, learner__sequence_parallel=size)

    (tmp_path / "config.json").write_text('{"num_attention_heads": 14}')
    assert found(2) == {}
    assert "the model's 14 attention heads" in found(4)["learner.sequence_parallel"]
    (tmp_path / "config.json").write_text("{")
    assert found(4) == {}


def test_a_hub_id_is_left_to_the_hub(tmp_path: Path) -> None:
    assert problems(tmp_path, data__path="openai/gsm8k", model__path="Qwen/Qwen2.5-1.5B") == {}


def test_a_users_reward_file_is_parsed_and_never_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from elsewhere import other\n\ndef score(completions, bonus=0):\n    return []\n\nraise SystemExit\n"
    )
    options = {"mine.py:score": {"bonus": 1}}
    assert problems(tmp_path, reward__functions={"mine.py:score": 1.0}, reward__options=options) == {}
    assert problems(tmp_path, reward__functions={"mine.py:other": 1.0}) == {}
    found = problems(tmp_path, reward__functions={"mine.py:scor": 1.0})
    assert "Did you mean score?" in found["reward.functions.mine.py:scor"]
    options = {"mine.py:score": {"bnus": 1}}
    found = problems(tmp_path, reward__functions={"mine.py:score": 1.0}, reward__options=options)
    assert "Did you mean bonus?" in found["reward.options.mine.py:score.bnus"]
    uses, options = {"mine": "mine.py:score"}, {"mine": {"bnus": 1}}
    found = problems(tmp_path, reward__functions={"mine": 1.0}, reward__uses=uses, reward__options=options)
    assert "Did you mean bonus?" in found["reward.options.mine.bnus"]
    file.write_text("def score(:\n")
    found = problems(tmp_path, reward__functions={"mine.py:score": 1.0})
    assert "not valid Python" in found["reward.functions.mine.py:score"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (
            {"algorithm__loss": "dr_grpo", "algorithm__scale_rewards": "group"},
            "algorithm.scale_rewards",
        ),
        ({"learner__ranks": 9}, "learner.ranks"),
        ({"generator__dtype": "bfloat16"}, "generator.dtype"),
        (
            {
                "generator__dtype": "bfloat16",
                "learner__compute_dtype": "bfloat16",
                "learner__head_dtype": "float32",
            },
            "generator.head_dtype",
        ),
        (
            {
                "generator__dtype": "bfloat16",
                "learner__compute_dtype": "bfloat16",
                "generator__head_dtype": "float32",
            },
            "learner.head_dtype",
        ),
        ({"algorithm__loss": "gspo", "algorithm__epsilon_high": 0.2}, "algorithm.epsilon_high"),
        ({"algorithm__loss": "gspo", "algorithm__aggregation": "token"}, "algorithm.aggregation"),
        ({"learner__micro_batch_tokens": 700}, "learner.micro_batch_tokens"),
        ({"max_staleness": 1, "algorithm__importance_cap": None}, "algorithm.importance_cap"),
        ({"generator__count": 9}, "generator.count"),
        ({"generator__engine_options": {"kv_cache_dtype": "fp8"}}, "generator.engine_options"),
        ({"learner__momentum": 0.9}, "learner.momentum"),
        (
            {"learner__offload_activations": True, "learner__gradient_checkpointing": True},
            "learner.offload_activations",
        ),
        ({"learner__share_prefix": "on", "learner__packing": False}, "learner.share_prefix"),
        ({"learner__decay_steps": 10}, "learner.decay_steps"),
        ({"learner__min_lr_ratio": 0.1}, "learner.min_lr_ratio"),
        ({"max_steps": 10, "learner__warmup_steps": 11}, "learner.warmup_steps"),
        ({"algorithm__reference_refresh_steps": 5}, "algorithm.reference_refresh_steps"),
        (
            {"checkpoint__keep_best": 1, "checkpoint__every": 7, "evaluation__every": 20, "max_steps": 100},
            "checkpoint.every",
        ),
    ],
)
def test_what_is_probably_not_meant_is_a_warning_only(tmp_path: Path, values: dict[str, Any], key: str) -> None:
    config = changed(**values)
    assert check(config, tmp_path) == []
    assert [warning.key for warning in warn(config)] == [key]


def test_engine_options_that_falsify_nothing_are_passed_on(tmp_path: Path) -> None:
    options = {"enable_prefix_caching": False, "speculative_config": {"method": "ngram"}, "cpu_offload_gb": 4}
    assert problems(tmp_path, generator__engine_options=options) == {}


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_weights_of_4_bits_need_a_package_that_no_lock_has(tmp_path: Path) -> None:
    found = problems(tmp_path, learner__lora_rank=8, learner__quantization="nf4")
    assert "pip install bitsandbytes" in found["learner.quantization"]


def test_weights_of_4_bits_are_for_adapters_below_zero_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packages" / "bitsandbytes").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert problems(tmp_path, learner__lora_rank=8, learner__quantization="nf4") == {}
    assert "learner.lora_rank=16" in problems(tmp_path, learner__quantization="nf4")["learner.quantization"]
    found = problems(tmp_path, learner__lora_rank=8, learner__quantization="nf4", learner__zero_stage=3)
    assert "learner.zero_stage=2" in found["learner.quantization"]
