"""Counts and sizes from recipes, what pods could not do, and the operator's own rules."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.launch.cli import main
from funicular.launch.k8s_groups import groups
from funicular.launch.k8s_options import RenderOptions
from funicular.launch.k8s_render import CannotRender, render
from funicular.launch.k8s_rules import refusals
from funicular.launch.problems import RecipeError
from funicular.launch.recipe import LoadedRecipe, load_recipe
from tests.unit.k8s.conftest import RECIPE, base_recipe, rendered


def sizes(*overrides: str, **options: Any) -> dict[str, tuple[int, int, int]]:
    """Role to pods, workers that one has room for, and its GPUs."""
    found = groups(load_recipe([RECIPE], overrides).config, RenderOptions(**options))
    return {group.role: (group.pods, group.offers, group.gpus) for group in found}


def test_engines_and_ranks_fill_pods_exactly() -> None:
    assert sizes("generator.count=6", "learner.ranks=16") == {
        "generator": (2, 6, 6),  # three engines of two GPUs on each
        "learner": (2, 8, 8),
        "sandbox": (2, 16, 0),
    }
    assert sizes("generator.count=5", "learner.ranks=4", gpus_per_pod=4)["generator"] == (5, 2, 2)


def test_a_run_on_cpus_asks_for_no_gpu() -> None:
    assert sizes("cluster.use_gpu=false")["learner"] == (1, 4, 0)


def test_sandbox_pods_are_there_where_code_is_judged_or_where_they_are_asked_for() -> None:
    assert sizes(sandbox_pods=5, sandbox_cpus=8)["sandbox"] == (5, 8, 0)
    assert sizes("sandbox.slots=12")["sandbox"] == (2, 12, 0)
    plain = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], []).config
    assert [group.role for group in groups(plain, RenderOptions())] == ["generator", "learner"]
    assert [group.role for group in groups(plain, RenderOptions(sandbox_pods=1))] == ["generator", "learner", "sandbox"]


def test_teachers_have_pods_of_their_own() -> None:
    distilled = load_recipe(["distill_smollm2_cpu"], ["distillation.teacher=owner/model"]).config
    assert [group.role for group in groups(distilled, RenderOptions())] == ["generator", "learner", "teacher"]


def test_what_does_not_fit_into_pods_is_refused_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"generator.tensor_parallel_size=2: .*--gpus-per-pod=1"):
        sizes(gpus_per_pod=1)
    with pytest.raises(ValueError, match=r"reward.scorers=4: .* take 13 CPUs, and the pods have 8"):
        sizes(cpus_per_gpu=1)


def test_images_namespace_and_name_reach_every_object() -> None:
    loaded = load_recipe([RECIPE], ["name=Second_run"])
    objects = render(loaded, RenderOptions(image="registry/gpu:7", sandbox_image="registry/box:7", namespace="team"))
    text = json.dumps(objects)
    assert "mbpp-qwen2" not in text
    assert {item["metadata"].get("namespace", item["metadata"]["name"]) for item in objects} == {"team"}
    assert text.count('"registry/gpu:7"') == 4
    assert text.count('"registry/box:7"') == 1
    assert "run_dir=/data/runs/Second_run" in text


def test_the_recipe_in_the_pod_is_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def taste(completions, **_):\n    return [0.0 for _ in completions]\n")
    (tmp_path / "recipe.yaml").write_text(
        "defaults: [mbpp_qwen2.5_coder_7b]\nreward:\n  functions: {'mine.py:taste': 1.0}\n"
    )
    loaded = load_recipe(
        [str(tmp_path / "recipe.yaml")],
        ["max_steps=7", "resume=/data/runs/x/checkpoints/step_000002", "generator.dtype=auto"],
    )
    objects = render(loaded, RenderOptions())
    (data,) = (item["data"] for item in objects if item["kind"] == "ConfigMap")
    pod = tmp_path / "pod"
    pod.mkdir()
    for name, text in data.items():
        (pod / name).write_text(text)
    assert load_recipe([str(pod / "recipe.yaml")], []).config == loaded.config
    assert yaml.safe_load(data["recipe.yaml"])["generator"]["dtype"] == "auto"  # for the pod's hardware to decide
    assert data["mine.py"].startswith("def taste")
    (job,) = (item["spec"] for item in objects if item["kind"] == "RayJob")
    assert "resume" not in job["entrypoint"]


def with_files(folder: Path, reward: str, **files: str) -> LoadedRecipe:
    """A recipe with this section `reward`, and modules beside it."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "recipe.yaml").write_text(f"defaults: [{RECIPE}]\nreward: {reward}\n")
    return load_recipe([str(folder / "recipe.yaml")], [])


def shipped(loaded: LoadedRecipe) -> dict[str, str]:
    (data,) = (item["data"] for item in render(loaded, RenderOptions()) if item["kind"] == "ConfigMap")
    return data


TASTE = "def taste(completions, **_):\n    return [0.0 for _ in completions]\n"
USES = "{functions: {sweet: 1.0}, uses: {sweet: 'mine.py:taste'}}"


def test_a_reward_file_behind_a_label_travels(tmp_path: Path) -> None:
    assert shipped(with_files(tmp_path, USES, mine=TASTE))["mine.py"] == TASTE


def test_modules_beside_a_reward_file_travel_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".hidden.py").write_text("")
    (tmp_path / "no-module.py").write_text("")
    loaded = with_files(tmp_path, USES, mine=TASTE, words="LEAST = 2\n")
    assert set(shipped(loaded)) == {"recipe.yaml", "mine.py", "words.py"}


def test_without_a_reward_file_no_module_travels(tmp_path: Path) -> None:
    loaded = with_files(tmp_path, "{functions: {correctness: 1.0}}", other="secret = 1\n")
    assert set(shipped(loaded)) == {"recipe.yaml"}


def test_more_than_a_config_map_holds_is_refused_with_the_largest(tmp_path: Path) -> None:
    loaded = with_files(tmp_path, USES, mine=TASTE, tables="#" * (240 * 1024))
    with pytest.raises(ValueError, match=r"a ConfigMap may carry 245760; the largest are tables.py 245762, "):
        render(loaded, RenderOptions())


def test_files_that_a_config_map_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    loaded = with_files(tmp_path, USES, mine=TASTE)
    (tmp_path / "grün.py").write_text("")
    with pytest.raises(ValueError, match=r"grün.py: .* a ConfigMap takes no such name"):
        render(loaded, RenderOptions())
    (tmp_path / "grün.py").unlink()
    (tmp_path / "words.py").write_bytes(b"# \xfc")
    with pytest.raises(ValueError, match=r"words.py: .* save it as UTF-8"):
        render(loaded, RenderOptions())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(TASTE)
    with pytest.raises(ValueError, match=r"reward function sub/mine.py:taste: expected a file beside the recipe"):
        render(with_files(tmp_path, "{functions: {'sub/mine.py:taste': 1.0}}"), RenderOptions())


def test_pods_of_driver_and_scorers_have_every_file_at_one_path_and_not_as_links(tmp_path: Path) -> None:
    objects = render(with_files(tmp_path, USES, mine=TASTE, words=""), RenderOptions())
    (spec,) = (item["spec"]["rayClusterSpec"] for item in objects if item["kind"] == "RayJob")
    head, *workers = spec["headGroupSpec"], *spec["workerGroupSpecs"]
    assert [worker["groupName"] for worker in workers] == ["generator", "learner", "sandbox"]
    for group in (head, *workers[:2]):
        pod = group["template"]["spec"]
        mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "recipe"]
        assert {mount["mountPath"]: mount["subPath"] for mount in mounts} == {
            f"/etc/funicular/{name}": name for name in ("mine.py", "recipe.yaml", "words.py")
        }
        assert all(mount["readOnly"] for mount in mounts)
        assert {"name": "recipe", "configMap": {"name": "mbpp-qwen2-5-coder-7b-recipe"}} in pod["volumes"]


def test_a_name_with_a_space_is_one_word_of_the_command() -> None:
    objects = render(load_recipe([RECIPE], ["name=My run"]), RenderOptions())
    (job,) = (item for item in objects if item["kind"] == "RayJob")
    assert job["metadata"]["name"] == "my-run"
    assert shlex.split(job["spec"]["entrypoint"])[-2:] == ["run_dir=/data/runs/My run", "resume=auto"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.path=tasks.jsonl", "a path of this machine"),
        ("checkpoint.path=/mnt/store", "a path of this machine"),
        ("resume=never", "a second attempt would refuse"),
        ("cluster.address=local", "expected auto"),
        ("sandbox.min_level=L3", "reach L1"),
        ("name=" + "a" * 48, "48 characters, and a RayJob may have 47"),
        ("name=7b", "expected a letter"),
    ],
)
def test_what_cannot_work_in_pods_is_refused(
    override: str, complaint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tasks.jsonl").touch()
    with pytest.raises(CannotRender, match=complaint):
        render(load_recipe([RECIPE], [override]), RenderOptions())


def test_paths_of_the_pods_volume_are_not_looked_for_here_and_others_are() -> None:
    wrong = ["model.path=/data/models/qwen", "data.path=/home/train.jsonl", "model.chat_template=/data/mine.jinja"]
    with pytest.raises(RecipeError) as raised:
        load_recipe([RECIPE], wrong, elsewhere="/data")
    assert [problem.key for problem in raised.value.problems] == ["data.path"]


def test_what_pods_can_reach_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["model.path=/data/models/qwen", "checkpoint.path=s3://bucket/runs", "run_dir=/data/elsewhere"]
    (job,) = (
        item
        for item in render(load_recipe([RECIPE], overrides, elsewhere="/data"), RenderOptions())
        if item["kind"] == "RayJob"
    )
    assert job["spec"]["entrypoint"] == "funicular train -c /etc/funicular/recipe.yaml resume=auto"


CLUSTER = "rayClusterSpec"
RULES: list[tuple[dict[str, Any], str]] = [
    ({"suspend": True, "shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 0}, "suspend: needs shutdown"),
    ({"suspend": True, "clusterSelector": {"ray.io/cluster": "x"}}, "suspend: not with clusterSelector"),
    ({"shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished: needs shutdown"),
    ({"ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished=-1"),
    ({"deletionStrategy": {"deletionRules": [{}]}}, "deletionRules: not with"),
    ({"backoffLimit": -1}, "backoffLimit=-1"),
    ({"clusterSelector": {"ray.io/cluster": "x"}}, "backoffLimit: not with clusterSelector"),
    ({"submissionMode": "InteractiveMode"}, "backoffLimit: not with"),
    ({"submissionMode": "SidecarMode", "submitterConfig": None}, "submitterPodTemplate: not with SidecarMode"),
    ({"submissionMode": "K8sjobMode"}, "submissionMode=K8sjobMode"),
    ({CLUSTER: {"networkPolicy": {}}}, "feature gate RayClusterNetworkPolicy"),
    ({CLUSTER: {"tlsOptions": {}}}, "feature gate RayClusterMTLS"),
    ({CLUSTER: {"historyServerOptions": {}}}, "feature gate RayClusterHistoryServer"),
    ({CLUSTER: {"gcsFaultToleranceOptions": {"backend": "rocksdb"}}}, "expected redis"),
    ({CLUSTER: {"gcsFaultToleranceOptions": {"redisAddress": "x:6379"}}}, "useless in a RayJob"),
    ({CLUSTER: {"rayVersion": "2.51.1"}}, "rayVersion 2.52.0 or newer, got 2.51.1"),
    ({CLUSTER: {"rayVersion": None}}, "rayVersion 2.52.0 or newer, got None"),
    ({CLUSTER: {"authOptions": {"mode": "token", "enableK8sTokenAuth": True}}}, "enableK8sTokenAuth: not in"),
]


@pytest.mark.parametrize(("change", "complaint"), RULES, ids=[complaint for _, complaint in RULES])
def test_what_only_the_operator_refuses_is_refused_here(change: dict[str, Any], complaint: str) -> None:
    (job,) = copy.deepcopy([item for item in rendered() if item["kind"] == "RayJob"])
    assert refusals([job]) == []
    inner = change.get(CLUSTER, {})
    job["spec"].update({key: value for key, value in change.items() if key != CLUSTER})
    job["spec"][CLUSTER].update(inner)
    assert [problem for problem in refusals([job]) if complaint in problem], refusals([job])


def test_a_job_without_a_cluster_of_its_own_or_another_is_refused() -> None:
    (job,) = copy.deepcopy([item for item in rendered() if item["kind"] == "RayJob"])
    del job["spec"][CLUSTER]
    assert refusals([job]) == ["rayClusterSpec: needed where there is no clusterSelector"]


def test_a_head_that_restarts_is_refused_with_the_submitter_in_it() -> None:
    (job,) = copy.deepcopy([item for item in rendered() if item["kind"] == "RayJob"])
    job["spec"]["submissionMode"] = "SidecarMode"
    del job["spec"]["submitterPodTemplate"], job["spec"]["submitterConfig"]
    assert refusals([job]) == []
    job["spec"][CLUSTER]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert refusals([job]) == [
        "group head: restartPolicy=Always: expected Never with SidecarMode; remove it, or use K8sJobMode"
    ]


def long_lived(**changes: Any) -> dict[str, Any]:
    (found,) = copy.deepcopy([item for item in rendered("raycluster") if item["kind"] == "RayCluster"])
    found["spec"].update(changes)
    return found


def test_a_cluster_may_have_a_name_of_53_characters() -> None:
    found = long_lived()
    found["metadata"]["name"] = "a" * 53
    assert refusals([found]) == []
    found["metadata"]["name"] = "a" * 54
    assert refusals([found]) == [
        f"name={'a' * 54}: 54 characters, and a RayCluster may have 53; give a shorter name=..."
    ]


AUTH = "authOptions.enableK8sTokenAuth"


@pytest.mark.parametrize(
    ("version", "options", "complaints"),
    [
        ("2.55.0", {"mode": "token"}, []),
        ("2.54.1", {"mode": "token"}, [f"{AUTH}: needs rayVersion 2.55.0 or newer, got 2.54.1"]),
        ("2.55.0", {}, [f"{AUTH}: needs authOptions.mode: token"]),
        (
            "2.60.0",
            {"mode": "token", "secretName": "mine"},
            [f"{AUTH}: not with authOptions.secretName; remove one of them"],
        ),
    ],
)
def test_tokens_that_the_api_server_judges_need_a_new_ray(
    version: str, options: dict[str, str], complaints: list[str]
) -> None:
    found = long_lived(rayVersion=version, authOptions={**options, "enableK8sTokenAuth": True})
    assert refusals([found]) == complaints


GROUP_RULES: list[tuple[dict[str, Any], str]] = [
    ({"minReplicas": None}, "both must be set"),
    ({"replicas": 9}, "minReplicas <= replicas"),
    ({"rayStartParams": {"labels": "a=b"}}, "use the group's `labels`"),
    ({"resources": {"CPU": "1"}}, "not with num-cpus"),
    ({"suspend": True}, "suspend: not with the autoscaler"),
]


@pytest.mark.parametrize(("change", "complaint"), GROUP_RULES, ids=[complaint for _, complaint in GROUP_RULES])
def test_what_the_operator_refuses_of_a_group_is_refused_here(change: dict[str, Any], complaint: str) -> None:
    (job,) = copy.deepcopy([item for item in rendered("autoscaled-sandbox") if item["kind"] == "RayJob"])
    job["spec"][CLUSTER]["workerGroupSpecs"][0].update(change)
    assert [problem for problem in refusals([job]) if complaint in problem], refusals([job])


def test_pods_that_restart_are_refused_with_the_autoscaler() -> None:
    (job,) = copy.deepcopy([item for item in rendered("autoscaled-sandbox") if item["kind"] == "RayJob"])
    job["spec"][CLUSTER]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert refusals([job]) == ["group head: restartPolicy: expected Never with the autoscaler; remove it"]


def test_the_command_writes_what_kubectl_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    command = ["k8s", "render", "-c", RECIPE, "--overlay", "kueue", "--namespace", "team", "--output", str(file)]
    assert main([*command, "learner.ranks=8"]) == 0
    assert f"kubectl apply -f {file}" in capsys.readouterr().out
    expected = render(load_recipe([RECIPE], ["learner.ranks=8"]), RenderOptions(overlays=("kueue",), namespace="team"))
    assert list(yaml.safe_load_all(file.read_text())) == json.loads(json.dumps(expected))


def test_a_file_that_cannot_be_written_is_said_and_the_command_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "absent" / "run.yaml"
    assert main(["k8s", "render", "-c", RECIPE, "--output", str(file)]) == 2
    assert f"--output={file}: No such file or directory; expected a file in a folder" in capsys.readouterr().err


def test_the_command_says_all_problems_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "render", "-c", RECIPE, "resume=never", "cluster.address=local"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "resume=never" in printed.err
    assert "cluster.address=local" in printed.err


def test_pods_without_memory_are_refused_with_the_least_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["k8s", "render", "-c", RECIPE, "--memory-gib-per-gpu", "3"])
    assert "--memory-gib-per-gpu: got '3', expected a whole number of at least 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--namespace", "Bad_NS", "lower-case letters, digits and hyphens, no hyphen at either end; write bad-ns"),
        ("--namespace", "-team", "write team"),
        ("--namespace", "a" * 64, f"write {'a' * 63}"),
        ("--namespace", "", "expected 1 to 63"),
        ("--image", "foo:latest", "expected a tag other than latest, or a digest"),
        ("--image", "host:5000/team/foo", "push it as host:5000/team/foo:VERSION"),
        ("--image", "Foo:1", "NAME in lower case"),
        ("--image", "foo@sha256:abc", "expected [HOST/]NAME:TAG or [HOST/]NAME@sha256:DIGEST"),
        ("--sandbox-image", "bar", "push it as bar:VERSION"),
    ],
)
def test_options_that_no_cluster_takes_or_that_pin_nothing_are_refused(
    option: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["k8s", "render", "-c", RECIPE, f"{option}={value}"])
    printed = capsys.readouterr().err
    assert f"argument {option}: got {value!r}, expected" in printed
    assert complaint in printed


@pytest.mark.parametrize(
    "image", ["foo:1", "REGISTRY/team/foo_a:0.1.0", "host:5000/foo:v1-x", f"foo:latest@sha256:{'0' * 64}"]
)
def test_images_with_a_tag_or_a_digest_are_taken(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "render", "-c", RECIPE, "--image", image, "--namespace", "team-7"]) == 0
    assert capsys.readouterr().out.count(f"image: {image}\n") == 4


def test_rendering_twice_gives_the_same() -> None:
    assert render(base_recipe(), RenderOptions()) == list(rendered())
