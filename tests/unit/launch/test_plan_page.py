"""The nine plans of docs/plan.md: published models on 1, 8 and 16 GPUs of 80 GB, against the page and sums by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoConfig

from funicular.launch.cli import main
from funicular.launch.model_shape import shape_from_config
from funicular.launch.plan import Plan, make_plan
from funicular.launch.plan_options import PlanOptions
from funicular.launch.recipe import load_recipe

PAGE = (Path(__file__).parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
RECIPE = "gsm8k_qwen2.5_7b_8xh100"
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model's config.json, and its number of parameters as its card has it."""

    kind: str
    parameters: int
    vocabulary: int
    width: int
    mlp: int
    layers: int
    heads: int
    key_heads: int

    def config(self) -> object:
        return AutoConfig.for_model(
            self.kind,
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            tie_word_embeddings=False,
        )

    @property
    def keys(self) -> int:
        """Width of keys, and of values."""
        return self.width // self.heads * self.key_heads

    def adapters(self, rank: int) -> int:
        """q, k, v, o, gate, up and down: rank x (in + out) each."""
        attention = 2 * (self.width + self.width) + 2 * (self.width + self.keys)
        return self.layers * rank * (attention + 3 * (self.width + self.mlp))


MODELS = {
    "Qwen2.5-7B": Published(
        kind="qwen2",
        parameters=7_615_616_512,
        vocabulary=152_064,
        width=3584,
        mlp=18_944,
        layers=28,
        heads=28,
        key_heads=4,
    ),
    "Llama-3.1-8B": Published(
        kind="llama",
        parameters=8_030_261_248,
        vocabulary=128_256,
        width=4096,
        mlp=14_336,
        layers=32,
        heads=32,
        key_heads=8,
    ),
    "Llama-3.1-70B": Published(
        kind="llama",
        parameters=70_553_706_496,
        vocabulary=128_256,
        width=8192,
        mlp=28_672,
        layers=80,
        heads=64,
        key_heads=8,
    ),
}
ROW = re.compile(
    r"^\| (?P<model>[\w.-]+) \| (?P<gpus>\d+) \| `(?P<keys>[^`]*)` \| (?P<rank>[\d.]+) \| (?P<tokens>[\d,]+) "
    r"\| (?P<step>[\d.,]+|-) \| (?P<fits>\w+) \|$",
    re.M,
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]


def planned(row: dict[str, str]) -> Plan:
    config = load_recipe([RECIPE], row["keys"].split()).config
    shape = shape_from_config(MODELS[row["model"]].config())  # type: ignore[arg-type]
    return make_plan(config, PlanOptions(device="h100", gpus=int(row["gpus"])), shape)


def named(row: dict[str, str]) -> str:
    return f"{row['model']} on {row['gpus']}"


def test_the_page_has_every_model_on_1_8_and_16_gpus() -> None:
    assert {(row["model"], row["gpus"]) for row in ROWS} == {(model, n) for model in MODELS for n in ("1", "8", "16")}
    assert len(ROWS) == 9


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_row_of_the_page_is_what_the_plan_says(row: dict[str, str]) -> None:
    plan = planned(row)
    assert f"{sum(part.nbytes for part in plan.learner) / GIB:.1f}" == row["rank"]
    assert f"{plan.room.tokens:,.0f}" == row["tokens"]
    assert ("no" if plan.problems else "yes") == row["fits"]
    if row["fits"] == "yes":
        assert f"{plan.bounds.step_s(plan.config.max_staleness):,.1f}" == row["step"]


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_row_of_the_page_is_the_sum_of_its_formulas(row: dict[str, str]) -> None:
    """The tables of the page, with the published numbers and none of the plan's code."""
    model = MODELS[row["model"]]
    keys = dict(word.split("=") for word in row["keys"].split())
    ranks = int(keys.get("learner.ranks", 4))
    lora = int(keys.get("learner.lora_rank", 0))
    trained = model.adapters(lora) if lora else model.parameters
    tokens, prompt, completion = 8192, 512, 1024
    states = 2 * model.parameters + (2 * trained if lora else 0) + (4 + 8 + 4) * trained
    layer = 7 * model.width + 4 * model.keys + 4 * model.mlp
    activations = model.layers * tokens * model.width * 2 + tokens * (layer + 2 * model.mlp) * 2
    of_loss = completion * ((tokens - prompt) // completion)  # they share the prompt
    head = 8 * of_loss * model.width + 3 * 4096 * 16_384 * 4 + 256 * 2**20
    deepspeed = 2 * (2 * 500_000_000 + 1_000_000_000)
    by_hand = states / ranks + activations + head + deepspeed
    assert by_hand / GIB == pytest.approx(float(row["rank"]), abs=0.06)
    workers = int(keys.get("generator.tensor_parallel_size", 2))
    per_token = 2 * 2 * model.layers * model.keys / workers
    room = max(0.0, (0.85 * 80e9 - 2 * model.parameters / workers) / per_token)
    assert room == pytest.approx(float(row["tokens"].replace(",", "")), rel=1e-5)


def test_one_gpu_is_too_few_for_any_recipe_and_the_plan_says_how_many_are_the_least() -> None:
    for row in ROWS:
        problems = " ".join(planned(row).problems)
        assert ("2 are the least; or have learner and generators take turns" in problems) == (row["gpus"] == "1")


@pytest.mark.parametrize("row", [row for row in ROWS if row["gpus"] == "1"], ids=named)
def test_each_change_that_a_plan_names_makes_the_rank_fit(row: dict[str, str]) -> None:
    """One rank of full fine-tuning is too large; what the plan offers is put into the recipe and planned again."""
    (problem,) = [problem for problem in planned(row).problems if "a learner rank needs" in problem]
    offered = problem.partition("It fits with ")[2].split(", or ")
    assert "learner.ranks=" in problem
    assert len(offered) > 1
    for words in offered:
        again = planned(row | {"keys": f"{row['keys']} {words}"})
        assert not [found for found in again.problems if "a learner rank needs" in found], words


def test_tensor_parallelism_that_a_plan_names_gives_room_for_a_completion() -> None:
    (row,) = [row for row in ROWS if row["model"] == "Llama-3.1-70B" and row["gpus"] == "1"]
    (problem,) = [problem for problem in planned(row).problems if "KV cache" in problem]
    assert problem.endswith("It fits with generator.tensor_parallel_size=4")
    again = planned(row | {"keys": f"{row['keys']} generator.tensor_parallel_size=4"})
    assert again.room.completions > 0


def test_a_number_of_gpus_needs_their_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MODELS["Qwen2.5-7B"].config().save_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert main(["plan", "-c", RECIPE, "--gpus", "8", f"model.path={tmp_path}"]) == 2
    assert "--gpus=8: expected --gpu NAME" in capsys.readouterr().err


def test_the_command_says_that_eight_gpus_are_too_few_for_sixteen_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODELS["Qwen2.5-7B"].config().save_pretrained(tmp_path)  # type: ignore[attr-defined]
    words = ["--gpu", "h100", "--gpus", "8", f"model.path={tmp_path}", "learner.ranks=12"]
    assert main(["plan", "-c", RECIPE, *words]) == 1
    assert "the parts take 16 GPUs (generator 4, learner 12) and there are 8: lower" in capsys.readouterr().out
