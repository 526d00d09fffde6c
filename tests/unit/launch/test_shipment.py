"""What of a recipe travels to a cluster, and what is refused before anything is sent."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from funicular.launch import shipment
from funicular.launch.recipe import load_recipe
from funicular.launch.shipment import Shipment, copy_package, plan_shipment, write_archive

REWARD = "def one(completions, **columns):\n    return [1.0] * len(completions)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its reward file, and things that stay here."""
    folder = tmp_path / "project"
    for name in (".git", "__pycache__", "runs/first"):
        (folder / name).mkdir(parents=True)
        (folder / name / "big.bin").write_bytes(b"x" * 1000)
    (folder / "runs/first/ledger.jsonl").write_text("")
    (folder / "runs/mlflow.db").write_bytes(b"x" * 1000)
    (folder / "reward.py").write_text(REWARD)
    (folder / "tiny.yaml").write_text('defaults: [embedded]\nreward: {functions: {"reward.py:one": 1.0}}\n')
    monkeypatch.chdir(folder)
    return folder


def ship(*overrides: str, recipes: tuple[str, ...] = ("tiny.yaml",), **options: object) -> Shipment:
    values = [*overrides] if any(o.startswith("run_dir") for o in overrides) else ["run_dir=/shared/x", *overrides]
    loaded = load_recipe(recipes, values, elsewhere="/")
    working_dir, exclude = options.get("working_dir"), options.get("exclude", ())
    return plan_shipment(loaded, recipes, working_dir, exclude)  # type: ignore[arg-type]


def test_the_recipes_folder_travels_without_hidden_files_caches_and_runs(project: Path) -> None:
    sent = ship()
    assert sent.root == project
    assert [str(path) for path in sent.files] == ["reward.py", "tiny.yaml"]
    assert sent.nbytes == sum((project / path).stat().st_size for path in sent.files)
    assert sent.recipes == ("tiny.yaml",)


def test_the_archive_is_the_same_for_the_same_files(project: Path, tmp_path: Path) -> None:
    first = write_archive(ship(), tmp_path / "first.zip").read_bytes()
    (project / "reward.py").touch()
    second = write_archive(ship(), tmp_path / "second.zip")
    assert second.read_bytes() == first
    with zipfile.ZipFile(second) as archive:
        assert archive.read("reward.py").decode() == REWARD


def test_a_packaged_recipe_needs_no_files(project: Path) -> None:
    sent = ship(recipes=("embedded", "gsm8k_graded"))
    assert (sent.root, sent.files, sent.recipes) == (None, (), ("embedded", "gsm8k_graded"))


def test_a_packaged_recipe_with_a_reward_file_ships_the_working_directory(project: Path) -> None:
    sent = ship("reward.functions.reward.py:one=1", recipes=("embedded",))
    assert sent.root == project
    assert sent.recipes == ("recipes/embedded.yaml",)


def test_recipes_are_named_from_the_folder_that_travels(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    assert ship(recipes=("project/tiny.yaml",)).recipes == ("tiny.yaml",)
    whole = ship(recipes=("project/tiny.yaml",), working_dir=project.parent)
    assert whole.recipes == ("project/tiny.yaml",)


def test_absolute_paths_are_the_clusters(project: Path) -> None:
    sent = ship(
        "model.path=/models/there", "data.path=/data/there.jsonl", "data.kinds=null", "checkpoint.path=s3://bucket/x"
    )
    assert [str(path) for path in sent.files] == ["reward.py", "tiny.yaml"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run_dir=null", "run_dir=null: expected an absolute path"),
        ("run_dir=runs/x", "run_dir=runs/x: expected an absolute path"),
        ("checkpoint.path=store", "checkpoint.path=store: expected a URI or an absolute path"),
        ("resume=runs/x/checkpoints/step_000001", "expected auto, never or an absolute path"),
        ("cluster.address=local", "cluster.address=local: expected auto"),
        ("model.chat_template=~/template.jinja", "a home folder of this machine"),
    ],
)
def test_what_cannot_be_found_on_a_cluster_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, override: str, said: str
) -> None:
    monkeypatch.setenv("HOME", str(project))
    (project / "template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match=said):
        ship(override)


def test_files_outside_of_the_folder_are_named(project: Path) -> None:
    (project.parent / "base.yaml").write_text("defaults: [embedded]\n")
    (project / "tiny.yaml").write_text("defaults: [../base.yaml]\n")
    with pytest.raises(ValueError, match=r"base\.yaml lies outside of it\. .*--working-dir"):
        ship()
    assert [str(path) for path in ship(working_dir=project.parent).files] == [
        "base.yaml",
        "project/reward.py",
        "project/tiny.yaml",
    ]


def test_a_path_that_would_mean_another_file_there_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "tasks.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    assert ship("data.path=tasks.jsonl", "data.kinds=null").files
    monkeypatch.chdir(project.parent)
    with pytest.raises(ValueError, match=r"data\.path=project/tasks\.jsonl: .* write tasks\.jsonl and submit from"):
        ship("data.path=project/tasks.jsonl", "data.kinds=null", recipes=("project/tiny.yaml",))


def test_a_folder_that_is_too_large_is_refused_with_its_largest_entries(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipment, "LIMIT", 3 << 20)
    (project / "weights").mkdir()
    (project / "weights" / "model.bin").write_bytes(bytes(4 << 20))
    with pytest.raises(ValueError, match=r"4 MiB; a job may carry 3\. Largest are weights 4 MiB"):
        ship()
    assert [str(path) for path in ship(exclude=("weights/",)).files] == ["reward.py", "tiny.yaml"]


def test_what_the_recipe_needs_cannot_be_excluded(project: Path) -> None:
    with pytest.raises(ValueError, match=r"reward\.functions: reward\.py:one: .* hidden or excluded"):
        ship(exclude=("*.py",))


def test_the_package_that_travels_runs_and_has_the_engines_plugin(tmp_path: Path) -> None:
    folders = copy_package(tmp_path)
    code = (
        "import funicular.launch.cli as cli; from importlib.metadata import distribution;"
        "d = distribution('funicular'); print(cli.__file__, d.version, [e.value for e in d.entry_points])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(str(folders[0]))
    assert "funicular.actors.vllm_compat:register" in done.stdout
    assert list(folders[0].rglob("__pycache__")) == []
    assert (folders[0] / "k8s" / "overlays").is_dir()
