"""The processes of reward code: what they see, what they load, and that nothing of them is left."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from funicular.rewards.channel import MAX_REPLY_BYTES
from funicular.rewards.runner import RewardLoadError
from tests.reward_runs import Make, rewards, runs, score, statuses, within


def test_a_text_that_takes_all_memory_times_out_and_the_others_do_not(make: Make) -> None:
    verdicts, raised = score(make({"user.py:allocate_on_big": 1.0}, memory_mib=256), ["5", "big 5", "6"])
    assert rewards(verdicts) == [1.0, 0.0, 1.0]
    assert statuses(verdicts) == ["passed", "timeout", "failed"]
    assert "256 MiB" in verdicts[1].details["user.py:allocate_on_big"]
    assert raised == {}


def test_no_call_sees_what_another_left_in_globals(make: Make) -> None:
    runner = make({"user.py:calls_before": 1.0})
    assert [rewards(score(runner, ["5"])[0]) for _ in range(3)] == [[0.0]] * 3


@pytest.mark.parametrize("name", ["user.py:crash_once", "user.py:raise_once"])
def test_what_fails_once_is_retried(make: Make, tmp_path: Path, name: str) -> None:
    runner = make({name: 1.0}, options={name: {"marker": str(tmp_path / "marker")}})
    verdicts, raised = score(runner, ["5", "6"])
    assert rewards(verdicts) == [1.0, 1.0]
    assert raised == {}


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


def test_a_daemon_of_a_function_is_killed_with_the_call(make: Make, tmp_path: Path) -> None:
    options = {"user.py:leave_a_daemon": {"marker": str(tmp_path / "pid")}}
    assert rewards(score(make({"user.py:leave_a_daemon": 1.0}, options=options), ["5"])[0]) == [1.0]
    assert not runs(int((tmp_path / "pid").read_text()))


def test_a_helper_that_a_file_starts_when_it_is_imported_serves_every_call(make: Make, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(
        "import subprocess\n"
        "HELPER = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\n"
        "def ask(completions):\n"
        "    HELPER.stdin.write(b'7\\n'); HELPER.stdin.flush()\n"
        "    return [float(HELPER.stdout.readline())] * len(completions)\n"
        "def pid(completions):\n"
        "    return [float(HELPER.pid)] * len(completions)\n"
    )
    runner = make({"helper.py:ask": 1.0, "helper.py:pid": 0.0})
    verdicts = [score(runner, ["5"])[0][0] for _ in range(2)]
    assert [verdict.reward for verdict in verdicts] == [7.0, 7.0]
    runner.close()
    helper = int(verdicts[0].breakdown["helper.py:pid"] or 0)
    assert within(10, lambda: not runs(helper))


def test_libraries_get_one_thread_unless_the_user_says_otherwise(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    options = {"user.py:environment": {"names": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}}}
    assert rewards(score(make({"user.py:environment": 1.0}, options=options), ["5"])[0]) == [1.0]


def test_there_is_no_network_unless_the_recipe_names_the_function(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = {"user.py:connect": {"port": server.getsockname()[1]}}
        verdicts, raised = score(make({"user.py:connect": 1.0}, options=options), ["5"])
        assert statuses(verdicts) == ["infra_error"]
        assert "PermissionError" in raised["user.py:connect"]
        assert "reward.network" in raised["user.py:connect"]
        allowed = make({"user.py:connect": 1.0, "correctness": 1.0}, options=options, network=["user.py:connect"])
        assert rewards(score(allowed, ["5"])[0]) == [2.0]


def test_a_file_has_no_network_when_it_is_imported(make: Make, tmp_path: Path) -> None:
    (tmp_path / "downloads.py").write_text("import socket\nsocket.getaddrinfo('model.example', 443)\n")
    with pytest.raises(RewardLoadError, match=r"reward\.network"):
        make({"downloads.py:f": 1.0}).start()


def test_only_functions_with_network_get_the_key_that_an_option_names(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    options = {name: {"names": {"A_SECRET": "x"}, "api_key_env": "A_SECRET"} for name in ("mine", "other")}
    uses = dict.fromkeys(("mine", "other"), "user.py:environment")
    runner = make({"mine": 1.0, "other": 1.0}, uses=uses, options=options, network=["mine"])
    assert score(runner, ["5"])[0][0].breakdown == {"mine": 1.0, "other": 0.0}
    monkeypatch.delenv("A_SECRET")
    with pytest.raises(RewardLoadError, match=r"reward\.options\.mine\.api_key_env=A_SECRET"):
        make({"mine": 1.0}, uses={"mine": uses["mine"]}, options={"mine": options["mine"]}, network=["mine"]).start()


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
    with pytest.raises(RewardLoadError, match="Did you mean scale"):
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
    assert within(30, lambda: pid_file.exists() and pid_file.read_text() != "")
    child = int(pid_file.read_text())
    parent.kill()
    parent.wait(10)
    assert within(10, lambda: not runs(child))


def test_importing_rewards_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'vllm', 'deepspeed', 'mlflow', 'transformers', 'sympy', 'numpy'}"
    code = (
        "import sys, funicular.rewards.runner, funicular.rewards.child;"
        f"found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
