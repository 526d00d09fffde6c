"""Reading recipes: composition, overrides, typing, and messages that name place, key, value and the fix."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml

from funicular.launch.config import Config
from funicular.launch.peer_names import PEER_NAMES, PEER_VALUES
from funicular.launch.problems import RecipeError
from funicular.launch.recipe import LoadedRecipe, load_recipe
from funicular.launch.recipe_files import packaged_recipes
from funicular.launch.schema_docs import keys


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return name


def load(text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe([write("own.yaml", text)], overrides)


def messages(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return [str(problem) for problem in caught.value.problems]


def message(text: str, *overrides: str) -> str:
    found = messages(text, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_an_empty_recipe_gives_every_default() -> None:
    assert load("").config == Config()


def test_the_config_is_frozen_plain_dataclasses() -> None:
    config = load("reward: {functions: {correctness: 2}}").config
    assert type(config.reward.functions) is dict
    with pytest.raises(FrozenInstanceError):
        config.algorithm.beta = 1.0  # type: ignore[misc]


def test_later_recipes_win_key_by_key_and_overrides_win_over_files() -> None:
    write("one.yaml", "max_steps: 1\nalgorithm: {beta: 0.1, delta: 4}\n")
    write("two.yaml", "algorithm: {beta: 0.2}\n")
    loaded = load_recipe(["one.yaml", "two.yaml"], ["algorithm.delta=null", "seed=7"])
    assert (loaded.config.max_steps, loaded.config.algorithm.beta) == (1, 0.2)
    assert loaded.config.algorithm.delta is None
    assert loaded.sources == ("one.yaml", "two.yaml", "algorithm.delta=null", "seed=7")
    assert loaded.origins["algorithm.beta"] == "two.yaml:1"
    assert loaded.origins["seed"] == "command line"


def test_defaults_are_composed_first_relative_to_the_recipe_that_lists_them() -> None:
    write("deep/base.yaml", "max_steps: 5\nseed: 5\n")
    write("deep/own.yaml", "seed: 6\ndefaults: [base.yaml]\n")
    loaded = load_recipe(["deep/own.yaml"], [])
    assert (loaded.config.max_steps, loaded.config.seed) == (5, 6)
    assert loaded.sources == ("deep/base.yaml", "deep/own.yaml")


@pytest.mark.parametrize("name", ["embedded", "embedded.yaml", "recipes/embedded.yaml", "recipes/embedded"])
def test_a_packaged_recipe_is_found_by_name_from_any_folder(name: str) -> None:
    loaded = load_recipe([name], [])
    assert loaded.config.name == "embedded"
    assert loaded.folder == Path.cwd()


def test_a_file_of_the_same_name_goes_before_the_packaged_recipe() -> None:
    write("recipes/embedded.yaml", "name: mine\n")
    loaded = load_recipe(["recipes/embedded.yaml"], [])
    assert loaded.config.name == "mine"
    assert loaded.folder == Path("recipes").resolve()


def test_reward_files_are_relative_to_the_users_recipe_even_under_a_packaged_one() -> None:
    write("mine/score.py", "def half(completions, **_):\n    return [0.5 for _ in completions]\n")
    write("mine/own.yaml", "defaults: [embedded]\nreward: {functions: {'score.py:half': 1}}\n")
    assert load_recipe(["mine/own.yaml", "gsm8k_graded"], ["reward.functions={score.py:half: 1}"]).folder == (
        Path("mine").resolve()
    )


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_loads_without_a_warning(name: str) -> None:
    teacher = ["distillation.teacher=smollm2-135m"] if name.startswith("distill") else []  # left to the user
    assert load_recipe([name], teacher).warnings == ()


def test_a_map_is_replaced_as_a_whole_and_an_override_below_it_adds() -> None:
    assert load("reward: {functions: {closeness: 1}}").config.reward.functions == {"closeness": 1.0}
    config = load("", "reward.functions.length=0.1", "reward.options.length.target=20").config
    assert config.reward.functions == {"correctness": 1.0, "length": 0.1}
    assert config.reward.options == {"length": {"target": 20}}


def test_an_override_below_a_map_takes_a_users_function_whose_path_has_dots() -> None:
    write("score.py", "def f(completions, *, bonus=0):\n    return [bonus for _ in completions]\n")
    config = load("", "reward.functions.score.py:f=1", "reward.options.score.py:f.bonus=2").config
    assert config.reward.functions["score.py:f"] == 1.0
    assert config.reward.options == {"score.py:f": {"bonus": 2}}


def test_numbers_may_be_written_as_people_write_them() -> None:
    config = load("max_steps: 1e3\nlearner: {learning_rate: 2e-5}\ngenerator: {kv_cache_gib: 2}").config
    assert (config.max_steps, config.learner.learning_rate) == (1000, 2e-5)
    assert type(config.max_steps) is int
    assert type(config.generator.kv_cache_gib) is float


def test_text_stays_as_it_is_written() -> None:
    config = load("name: 1e3\ntracking: {experiment: no}\ndata: {subset: 2024-01-01}").config
    assert (config.name, config.tracking.experiment, config.data.subset) == ("1e3", "no", "2024-01-01")
    template = "Q: {prompt} # ${x} \\${y}"
    assert load("", f"data.prompt_template={template}").config.data.prompt_template == template
    assert load("", r"data.answer_pattern=####\s*(\d+)").config.data.answer_pattern == r"####\s*(\d+)"


def test_the_resolved_text_reads_back_as_the_same_config() -> None:
    loaded = load(
        "name: '1e3'\nresume: never\nreward: {functions: {length: 1}, options: {length: {target: 5}}}\n"
        "data: {prompt_template: \"Q: {prompt}\\n\\n# ${x}\\n\", answer_pattern: '####\\s*(.+)'}\n",
        "learner.learning_rate=3e-7",
        "algorithm.delta=null",
    )
    assert load(loaded.text).config == loaded.config
    assert load(loaded.text).text.count("\n") == loaded.text.count("\n")
    plain = yaml.safe_load(loaded.text)  # as other readers of config.yaml do
    assert plain["data"]["prompt_template"] == loaded.config.data.prompt_template
    assert (plain["name"], plain["learner"]["learning_rate"]) == ("1e3", 3e-7)
    assert "learning_rate: 3.0e-07  # command line\n" in loaded.text


def test_a_section_without_keys_is_left_at_its_defaults() -> None:
    assert load("learner:\n  # learning_rate: 1\n").config == Config()


def test_all_problems_come_at_once_each_with_its_place() -> None:
    found = messages(
        "max_steps: many\nalgorithm:\n  grop_size: 8\n  loss: grp\nreward: {verifier: maths}\n",
        "steps",
        "tracking.mlflow=7",
        "algorithm.max_replacements=-1",
    )
    assert {text.split(": ")[0] + "|" + text.split(": ")[1] for text in found} == {
        "own.yaml:1|max_steps=many",
        "own.yaml:3|algorithm.grop_size=8",
        "own.yaml:4|algorithm.loss=grp",
        "own.yaml:5|reward.verifier=maths",
        "command line|steps",
        "command line|tracking.mlflow=7",
        "command line|algorithm.max_replacements=-1",
    }


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("algorithm.kl_coeff", "algorithm.beta"),
        ("algorithm.num_generations", "algorithm.group_size"),
        ("actor_rollout_ref.rollout.n", "algorithm.group_size"),
        ("generator.max_completion_length", "generator.max_completion_tokens"),
        ("max_prompt_length", "generator.max_prompt_tokens"),
        ("lr", "learner.learning_rate"),
        ("trainer.total_training_steps", "max_steps"),
        ("output_dir", "run_dir"),
        ("cliprange", "algorithm.epsilon_low"),
        ("tp", "generator.tensor_parallel_size"),
        ("learner.group_size", "algorithm.group_size"),
        ("learner.learning_rat", "learner.learning_rate"),
        ("generator.beta", "algorithm.beta"),
        ("checkpoints_every", "checkpoint.every"),
    ],
)
def test_an_unknown_key_is_answered_with_ours(key: str, ours: str) -> None:
    text = message("", f"{key}=1")
    assert f"{key}=1" in text
    assert f"Did you mean {ours} " in text


def test_every_peers_name_leads_to_a_key_that_exists_and_hides_none_of_ours() -> None:
    assert set(PEER_NAMES.values()) <= set(keys())
    assert set(PEER_NAMES).isdisjoint(keys())


def test_a_peers_name_of_a_value_is_answered_with_ours() -> None:
    text = message("", "weight_sync.transport=NCCL")
    assert "expected one of auto | object_store | delta | broadcast | cuda_ipc" in text
    assert text.endswith("Did you mean broadcast?")
    for (key, _), ours in PEER_VALUES.items():
        assert ours in keys()[key].choices


def test_a_misspelt_section_is_one_problem() -> None:
    assert message("learnr:\n  a: 1\n  b: 2\n").endswith("Did you mean the section learner?")


@pytest.mark.parametrize("key", ["generator.top_p", "rollout.top_k", "sampling_params.repetition_penalty"])
def test_what_would_hide_the_sampled_distribution_is_answered_with_the_reason(key: str) -> None:
    assert "the learner could not reproduce them" in message("", f"{key}=0.9")


def test_keys_of_an_unknown_section_are_answered_one_by_one() -> None:
    found = messages("trainer:\n  total_epochs: 3\n  output_dir: x\n")
    assert [text.split(": ")[0] for text in found] == ["own.yaml:2", "own.yaml:3"]


def test_a_dotted_key_in_a_file_is_told_to_nest() -> None:
    assert "write algorithm: {beta: 0.1}" in message("algorithm.beta: 0.1\n")


def test_a_value_for_a_section_is_an_error() -> None:
    assert "Did you mean model.path=gpt2?" in message("model: gpt2\n")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_steps=1.5", "expected int, got a float"),
        ("max_steps=true", "expected int, got a bool"),
        ("max_steps=null", "expected int, got null"),
        ("max_steps={a: 1}", "expected int, got a map"),
        ("algorithm.delta=high", "expected float or null, got text"),
        ("tracking.mlflow=7", "expected bool, got an int"),
        ("reward.functions=correctness", "expected map of float, got text"),
        ("reward.functions.correctness=high", "expected map of float, got a map"),
        ("algorithm.loss=drgrpo", "expected one of grpo | dr_grpo | bnpo | "),
        ("algorithm.loss=drgrpo", "Did you mean dr_grpo?"),
        ("max_steps=", "there is no value after ="),
        ("max_steps", "expected key=value. Did you mean max_steps=VALUE (int)?"),
        ("embedded", "A recipe is given with -c embedded"),
        ("--max-steps=3", "Did you mean max_steps (int)?"),
        ("--config", "A recipe is given with -c NAME"),
        ("max_steps.x=3", "there is no such key"),
        ("algorithm=grpo", "a section with the keys loss, "),
        ("reward.options=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_says_what_was_expected(override: str, expected: str) -> None:
    text = message("", override)
    assert text.startswith("command line: ")
    assert expected in text


def test_a_rule_does_not_repeat_a_mistake_that_is_reported_already() -> None:
    assert message("", "algorithm.groups_per_step=few", "algorithm.optimizer_batches=9").count("few") == 1


def test_a_key_that_stands_twice_is_an_error_with_both_lines() -> None:
    text = message("seed: 1\nmax_steps: 2\nseed: 3\n")
    assert text.startswith("own.yaml:3: seed: ")
    assert "first on line 1" in text
    assert "options.length.target" in message("reward: {options: {length: {target: 1, target: 2}}}")


def test_yaml_syntax_is_reported_with_its_line() -> None:
    assert message("a: [1\nb: 2\n").startswith("own.yaml:2: not valid YAML")
    assert message("- a\n- b\n").startswith("own.yaml:1: a recipe is a mapping")


def test_a_tag_is_refused_and_nothing_is_executed() -> None:
    write("touched.txt", "")
    text = message("name: !!python/object/apply:os.remove [touched.txt]\n")
    assert text.startswith("own.yaml:1: name: the tag !!python/object/apply:os.remove")
    assert Path("touched.txt").exists()


def test_an_alias_that_contains_itself_is_refused() -> None:
    assert "contains itself" in message("reward: {options: &o {length: *o}}\n")


def test_a_missing_recipe_names_where_was_looked_and_what_there_is() -> None:
    write("other.yaml", "")
    with pytest.raises(RecipeError) as caught:
        load_recipe(["othr.yaml", "recipes/embeded.yaml"], [])
    first, second = map(str, caught.value.problems)
    assert first.startswith("command line: othr.yaml: ")
    assert str(Path.cwd()) in first
    assert "Did you mean other.yaml?" in first
    assert ", ".join(packaged_recipes()) in second
    assert "Did you mean embedded?" in second


def test_recipes_that_include_each_other_are_an_error() -> None:
    write("a.yaml", "defaults: [b.yaml]\n")
    write("b.yaml", "max_steps: 1\ndefaults:\n  - a.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml:3: .*a\.yaml -> b\.yaml -> a\.yaml"):
        load_recipe(["a.yaml"], [])


def test_a_missing_default_names_the_line_that_lists_it() -> None:
    assert message("defaults:\n  - nowhere\n").startswith("own.yaml:2: nowhere: ")
    assert "Write defaults: [NAME]" in message("defaults: embedded\n")


def test_no_recipe_at_all_lists_the_packaged_ones() -> None:
    with pytest.raises(RecipeError, match=r"packaged ones are .*\bembedded, "):
        load_recipe([], [])


def test_a_value_left_open_must_be_given() -> None:
    assert "Add data.path=VALUE" in message("data:\n  path: ???\n")
    assert load("data:\n  path: ???\n", "data.path=arithmetic").config.data.path == "arithmetic"


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    code = (
        "import sys; from funicular.launch.recipe import load_recipe; load_recipe(['embedded'], []); "
        "print([m for m in ('torch','ray','vllm','deepspeed','mlflow','transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
