import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.channel import MAX_REPLY_BYTES
from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import FunctionRunner, RewardLoadError, scoring_deadline_s
from funicular.rewards.types import Message, Status, Task, Verdict

USER = """
import ctypes, os, sys, time
from pathlib import Path

def score(completions, **_):
    return [float(len(c)) for c in completions]

def hang_on_loop(completions, **_):
    for text in completions:
        while "loop" in text:
            pass
    return [1.0] * len(completions)

def count_group(completions, **_):
    for text in completions:
        while "loop" in text:
            pass
    return [float(len(completions))] * len(completions)

def crash_on_exit(completions, **_):
    if any("exit" in c for c in completions):
        os._exit(7)
    return [1.0] * len(completions)

def crash_once(completions, *, marker, **_):
    if not Path(marker).exists():
        Path(marker).touch()
        ctypes.string_at(0)
    return [1.0] * len(completions)

def raise_once(completions, *, marker, **_):
    if not Path(marker).exists():
        Path(marker).touch()
        raise OSError("not yet")
    return [1.0] * len(completions)

def raise_on_bad(completions, **_):
    if any("bad" in c for c in completions):
        raise KeyError("bad text")
    return [1.0] * len(completions)

def quit_always(completions, **_):
    sys.exit(0)

def raise_together(completions, **_):
    if len(completions) > 1:
        raise ValueError("only one at a time")
    return [1.0]

def none(completions, **_):
    return [None] * len(completions)

def none_for_some(completions, **_):
    return [None if "skip" in c else 2.0 for c in completions]

def nan(completions, **_):
    return [float("nan") if "nan" in c else 1.0 for c in completions]

def words(completions, **_):
    return ["good"] * len(completions)

def too_few(completions, **_):
    return [1.0]

def noisy(completions, **_):
    print("to stdout " * 1000)
    os.write(1, b"raw bytes to descriptor 1")
    sys.stdout.flush()
    assert sys.stdin.read() == ""
    return [1.0] * len(completions)

def long_error(completions, **_):
    raise RuntimeError("x" * 50_000_000)

def start_helper(completions, **_):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os._exit(3)

def columns(prompts, completions, level, answer, task_id, correct, completion_ids, **_):
    assert prompts == [[{"role": "user", "content": "Q"}]] * 2, prompts
    assert completions[0] == [{"role": "assistant", "content": "5"}]
    assert (level, answer, task_id) == ([3, 3], ["5", "5"], ["t", "t"])
    return [float(c) + len(ids) for c, ids in zip(correct, completion_ids)]

def secrets(completions, **_):
    return [float("A_SECRET" in os.environ)] * len(completions)
"""

TASK = Task(task_id="t", prompt="Q", answer="5", verifier="exact_number")
Make = Callable[..., FunctionRunner]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    (tmp_path / "user.py").write_text(USER)
    runners: list[FunctionRunner] = []

    def build(functions: dict[str, float], limit: float = 20.0, **keys: Any) -> FunctionRunner:
        config = RewardConfig(functions=functions, time_limit_s=limit, **keys)
        runners.append(FunctionRunner(config, tmp_path))
        return runners[-1]

    yield build
    for runner in runners:
        runner.close()


def score(runner: FunctionRunner, texts: list[str], task: Task = TASK) -> tuple[list[Verdict], dict[str, str]]:
    return runner.score(task, texts, [[1] * (i + 1) for i in range(len(texts))])


def rewards(verdicts: list[Verdict]) -> list[float | None]:
    return [verdict.reward for verdict in verdicts]


def statuses(verdicts: list[Verdict]) -> list[str]:
    return [str(verdict.status) for verdict in verdicts]


def test_reward_is_the_weighted_sum_and_status_the_verifiers(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:score": 0.5}), ["5", "it is 6"])
    assert rewards(verdicts) == [1.5, 3.5]
    assert statuses(verdicts) == ["passed", "failed"]
    assert verdicts[1].breakdown == {"correctness": 0.0, "user.py:score": 7.0}
    assert verdicts[1].details == {"extracted": "6"}
    assert raised == {}


def test_functions_get_trl_columns_and_their_options(make: Make) -> None:
    task = Task(
        task_id="t",
        prompt=(Message(role="user", content="Q"),),
        answer="5",
        verifier="exact_number",
        columns={"level": 3},
    )
    runner = make({"user.py:columns": 1.0, "length": 1.0}, options={"length": {"target": 2}})
    verdicts, raised = score(runner, ["5", "6"], task)
    assert raised == {}
    assert rewards(verdicts) == [2.5, 3.0]


def test_only_the_text_that_hangs_times_out_and_scores_zero(make: Make) -> None:
    runner = make({"user.py:hang_on_loop": 1.0, "user.py:score": 0.1}, limit=0.5)
    verdicts, raised = score(runner, ["5", "loop 5", "6"])
    assert rewards(verdicts) == [1.1, pytest.approx(0.6), 1.1]
    assert statuses(verdicts) == ["passed", "timeout", "failed"]
    assert verdicts[1].breakdown["user.py:hang_on_loop"] == 0.0
    assert "0.5 s" in verdicts[1].details["user.py:hang_on_loop"]
    assert raised == {}, "a time-out is the completion's doing, not the function's error"


def test_the_others_of_a_group_are_still_evaluated_together(make: Make) -> None:
    verdicts, _ = score(make({"user.py:count_group": 1.0}, limit=0.5), ["5", "loop", "6"])
    assert rewards(verdicts) == [2.0, 0.0, 2.0]


def test_a_hanging_verifier_is_a_time_out_and_not_correct(make: Make) -> None:
    runner = make({"correctness": 1.0}, limit=1.0, verifier="math")
    task = Task(task_id="t", prompt="Q", answer="5", verifier="math")
    verdicts, raised = score(runner, ["$5$", "$9^{9^{9^{9^{9}}}}$"], task)
    assert statuses(verdicts) == ["passed", "timeout"]
    assert rewards(verdicts) == [1.0, 0.0]
    assert raised == {}


def test_a_text_that_crashes_the_process_is_void_and_the_others_are_not(make: Make) -> None:
    verdicts, raised = score(make({"user.py:crash_on_exit": 1.0, "correctness": 1.0}), ["5", "exit 5"])
    assert rewards(verdicts) == [2.0, None]
    assert statuses(verdicts) == ["passed", "infra_error"]
    assert "exit code 7" in raised["user.py:crash_on_exit"]


@pytest.mark.parametrize("name", ["user.py:crash_once", "user.py:raise_once"])
def test_what_fails_once_is_retried(make: Make, tmp_path: Path, name: str) -> None:
    runner = make({name: 1.0}, options={name: {"marker": str(tmp_path / "marker")}})
    verdicts, raised = score(runner, ["5", "6"])
    assert rewards(verdicts) == [1.0, 1.0]
    assert raised == {}


def test_the_completions_for_which_a_function_raises_are_void(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:raise_on_bad": 1.0}), ["5", "bad 5", "5"])
    assert rewards(verdicts) == [2.0, None, 2.0]
    assert statuses(verdicts)[1] == "infra_error"
    assert "KeyError: 'bad text' (user.py:" in raised["user.py:raise_on_bad"]


def test_sys_exit_in_a_function_is_an_error_like_any_other(make: Make) -> None:
    verdicts, raised = score(make({"user.py:quit_always": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert "SystemExit" in raised["user.py:quit_always"]


def test_a_function_that_fails_only_on_the_whole_group_is_its_error_for_all(make: Make) -> None:
    verdicts, raised = score(make({"user.py:raise_together": 1.0}), ["5", "6"])
    assert statuses(verdicts) == ["infra_error", "infra_error"]
    assert "on none of them alone" in raised["user.py:raise_together"]


def test_a_raising_verifier_voids_the_group(make: Make) -> None:
    task = Task(task_id="t", prompt="Q", answer="a cat", verifier="exact_number")
    verdicts, raised = score(make({"correctness": 1.0}), ["5", "6"], task)
    assert rewards(verdicts) == [None, None]
    assert statuses(verdicts) == ["infra_error", "infra_error"]
    assert "not a number" in raised["verifier exact_number"]


def test_none_for_the_whole_group_leaves_the_function_out(make: Make) -> None:
    verdicts, _ = score(make({"correctness": 1.0, "user.py:none": 5.0}), ["5", "6"])
    assert rewards(verdicts) == [1.0, 0.0]
    assert verdicts[0].breakdown == {"correctness": 1.0, "user.py:none": None}


def test_none_for_some_voids_those(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:none_for_some": 1.0}), ["5", "skip 5"])
    assert rewards(verdicts) == [3.0, None]
    assert verdicts[1].status is Status.PASSED
    assert "None" in verdicts[1].details["user.py:none_for_some"]
    assert raised == {}


def test_none_from_every_function_is_no_reward(make: Make) -> None:
    verdicts, _ = score(make({"user.py:none": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert statuses(verdicts) == ["passed", "failed"]


def test_nan_is_an_error_and_never_zero(make: Make) -> None:
    verdicts, raised = score(make({"user.py:nan": 1.0}), ["5", "nan"])
    assert rewards(verdicts) == [1.0, None]
    assert statuses(verdicts) == ["passed", "infra_error"]
    assert "finite" in raised["user.py:nan"]


@pytest.mark.parametrize(("name", "message"), [("words", "expected a number"), ("too_few", "1 values for 2")])
def test_a_return_value_of_the_wrong_shape_is_an_error(make: Make, name: str, message: str) -> None:
    verdicts, raised = score(make({f"user.py:{name}": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert message in raised[f"user.py:{name}"]


def test_prints_do_not_reach_the_protocol(make: Make) -> None:
    verdicts, raised = score(make({"user.py:noisy": 1.0}), ["5", "6"])
    assert raised == {}
    assert rewards(verdicts) == [1.0, 1.0]


def test_huge_texts_and_huge_errors_pass_or_are_cut(make: Make) -> None:
    runner = make({"user.py:score": 1.0})
    assert rewards(score(runner, ["x" * 3_000_000, "5"])[0]) == [3e6, 1.0]
    _, raised = score(make({"user.py:long_error": 1.0}), ["5", "6"])
    assert 1000 < len(raised["user.py:long_error"]) < 3000


def test_a_reply_over_the_cap_counts_as_a_broken_process(make: Make, tmp_path: Path) -> None:
    (tmp_path / "flood.py").write_text(
        "import os, struct, stat\n"
        "def flood(completions, **_):\n"
        "    pipes = [fd for fd in range(3, 64) if _pipe(fd)]\n"
        f"    [os.write(fd, struct.pack('>Q', {MAX_REPLY_BYTES + 1})) for fd in pipes]\n"
        "    return [1.0] * len(completions)\n"
        "def _pipe(fd):\n"
        "    try:\n"
        "        return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.get_blocking(fd) and _writable(fd)\n"
        "    except OSError:\n"
        "        return False\n"
        "def _writable(fd):\n"
        "    import fcntl\n"
        "    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY\n"
    )
    verdicts, raised = score(make({"flood.py:flood": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert "at most" in raised["flood.py:flood"]


def test_a_forgotten_grandchild_does_not_hide_that_the_child_died(make: Make) -> None:
    verdicts, raised = score(make({"user.py:start_helper": 1.0}, limit=30.0), ["5"])
    assert statuses(verdicts) == ["infra_error"]
    assert "exit code 3" in raised["user.py:start_helper"]


def test_the_environment_is_not_handed_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    assert rewards(score(make({"user.py:secrets": 1.0}), ["5"])[0]) == [0.0]


def test_the_child_is_replaced_when_it_died_between_groups(make: Make) -> None:
    runner = make({"correctness": 1.0})
    score(runner, ["5"])
    runner.close()
    assert rewards(score(runner, ["5"])[0]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user.py:missing", "has no function missing"),
        ("broken.py:f", "SyntaxError"),
        ("slow.py:f", "ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_loaded_stops_at_the_start(
    make: Make, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "slow.py").write_text("import no_such_module_here")
    with pytest.raises(RewardLoadError, match=message):
        make({name: 1.0}).start()


def test_an_option_that_a_user_function_does_not_take_is_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "opt.py").write_text("def f(completions, *, scale=1.0):\n    return [scale] * len(completions)\n")
    assert rewards(score(make({"opt.py:f": 1.0}, options={"opt.py:f": {"scale": 3.0}}), ["5"])[0]) == [3.0]
    with pytest.raises(RewardLoadError, match="nearest: scale"):
        make({"opt.py:f": 1.0}, options={"opt.py:f": {"scael": 3.0}}).start()


def test_a_user_file_may_import_its_neighbours(make: Make, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 4.0\n")
    (tmp_path / "main_one.py").write_text(
        "from neighbour import VALUE\ndef f(completions):\n    return [VALUE] * len(completions)\n"
    )
    assert rewards(score(make({"main_one.py:f": 1.0}), ["5"])[0]) == [4.0]


def test_the_child_dies_with_its_parent_even_in_a_busy_loop(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import os\nfrom pathlib import Path\n"
        f"def f(completions):\n    Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    while True:\n        pass\n"
    )
    program = (
        "from pathlib import Path\n"
        "from funicular.rewards.config import RewardConfig\n"
        "from funicular.rewards.runner import FunctionRunner\n"
        "from funicular.rewards.types import Task\n"
        "config = RewardConfig(functions={'busy.py:f': 1.0}, time_limit_s=60)\n"
        f"runner = FunctionRunner(config, Path({str(tmp_path)!r}))\n"
        "runner.score(Task(task_id='t', prompt='Q', answer='5', verifier='exact_number'), ['5'], [[1]])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    pid_file = tmp_path / "pid"
    assert _within(30, lambda: pid_file.exists() and pid_file.read_text() != "")
    child = int(pid_file.read_text())
    parent.kill()
    parent.wait(10)
    assert _within(10, lambda: not _runs(child))


def test_the_deadline_of_a_group_covers_every_function_failing_slowly() -> None:
    config = RewardConfig(functions={"correctness": 1.0, "length": 1.0}, time_limit_s=2.0)
    assert scoring_deadline_s(config, 8) >= 3 * 2.0 * 8 * 4


def test_importing_rewards_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'vllm', 'deepspeed', 'mlflow', 'transformers', 'sympy', 'numpy'}"
    code = (
        "import sys, funicular.rewards.runner, funicular.rewards.child;"
        f"found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
