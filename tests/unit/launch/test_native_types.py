from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from funicular.actors.config import GeneratorConfig, LearnerConfig
from funicular.cluster.config import ClusterConfig
from funicular.launch.config import Config
from funicular.launch.native_types import changed_types, with_native_types
from funicular.launch.recipe import load_recipe

AUTO = Config(generator=GeneratorConfig(dtype="auto"), learner=LearnerConfig(compute_dtype="auto"))


def types(config: Config, tmp_path: Path, flags: str = "fpu avx2", vendor: str = "AuthenticAMD") -> tuple[str, str]:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\n")
    found = with_native_types(config, tmp_path / "cpuinfo", tmp_path)
    return found.generator.dtype, found.learner.compute_dtype


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("AuthenticAMD", "fpu avx2", "float32"),
        ("AuthenticAMD", "fpu avx512f avx512bw", "float32"),
        ("AuthenticAMD", "avx512f avx512_bf16", "bfloat16"),
        ("GenuineIntel", "avx512f avx512_bf16", "float32"),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", "bfloat16"),
    ],
)
def test_a_cpu_computes_in_what_it_multiplies_fastest(tmp_path: Path, vendor: str, flags: str, dtype: str) -> None:
    assert types(AUTO, tmp_path, flags, vendor) == (dtype, dtype)


def test_arm_calls_its_flags_features(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert with_native_types(AUTO, tmp_path / "cpuinfo", tmp_path).generator.dtype == "bfloat16"


def test_a_gpu_computes_in_bfloat16_unless_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert types(AUTO, tmp_path) == ("bfloat16", "bfloat16")
    cpu_only = Config(generator=AUTO.generator, learner=AUTO.learner, cluster=ClusterConfig(use_gpu=False))
    assert types(cpu_only, tmp_path) == ("float32", "float32")


def test_a_plan_for_gpus_counts_with_their_types(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    found = with_native_types(AUTO, tmp_path / "cpuinfo", tmp_path, on_gpu=True)
    assert (found.generator.dtype, found.learner.compute_dtype) == ("bfloat16", "bfloat16")


def test_what_a_recipe_says_stays(tmp_path: Path) -> None:
    mixed = Config(generator=GeneratorConfig(dtype="bfloat16"), learner=LearnerConfig(compute_dtype="auto"))
    assert types(mixed, tmp_path) == ("bfloat16", "float32")


def test_a_machine_that_hides_its_processor_computes_in_float32(tmp_path: Path) -> None:
    assert with_native_types(AUTO, tmp_path / "none", tmp_path).generator.dtype == "float32"


def test_a_loaded_recipe_says_what_was_chosen() -> None:
    loaded = load_recipe(["embedded"], [])
    assert loaded.config.generator.dtype == loaded.config.learner.compute_dtype != "auto"
    shown = yaml.safe_load(loaded.text)
    assert shown["generator"]["dtype"] == loaded.config.generator.dtype


def test_a_resumed_run_says_what_it_computes_in_another_type_now() -> None:
    now = Config(generator=GeneratorConfig(dtype="float32"), learner=LearnerConfig(compute_dtype="float32"))
    before = {"generator": {"dtype": "bfloat16"}, "learner": {"compute_dtype": "float32"}}
    (said,) = changed_types(before, now)
    assert said == "generator.dtype=float32 from now on, and bfloat16 before; generator.dtype=bfloat16 keeps it"
    assert changed_types({}, now) == []
