"""What a run shows: plain lines in a file, a live line on a terminal, and no number that was not measured."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from funicular.launch.progress import Progress
from funicular.launch.progress_text import (
    PHASES,
    STEP_METRICS,
    RunSummary,
    duration,
    step_line,
    summary_lines,
)

ROOT = Path(__file__).parents[3]
METRICS = {
    "reward/mean": 0.4125,
    "policy/loss": -0.00312,
    "perf/tokens_per_s": 1234.4,
    "async/staleness_max": 1.0,
    "mismatch/logprob_abs_mean": 2.1e-6,
    "time/step_s": 20.0,
    "time/wait_groups_s": 11.0,
    "time/generate_s": 10.0,
    "time/score_s": 0.3,
    "time/learn_s": 8.0,
    "time/weight_sync_s": 1.2,
}


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_line_shows_every_number_that_a_run_is_judged_by() -> None:
    line = step_line(7, 100, METRICS, eta_s=1860)
    assert line == (
        "step   7/100  reward 0.412  loss -0.0031  1,234 tok/s  staleness 1  mismatch 2.1e-06  "
        "wait 11.0 generate 10.0 score 0.3 learn 8.0 sync 1.2  = 20.0 s  31 min 0 s left"
    )


def test_held_out_pass_at_1_stands_in_the_line_only_when_it_was_evaluated() -> None:
    assert "pass@1" not in step_line(7, 100, METRICS)
    assert "pass@1 0.250" in step_line(7, 100, METRICS | {"eval/held_out/pass_at_1": 0.25})


def test_a_missing_metric_shows_as_a_dash_never_as_a_number() -> None:
    line = step_line(1, 2, {"time/step_s": 1.0})
    assert "reward -" in line
    assert not re.search(r"(?<!\d)0\.0", line)


def test_a_file_gets_plain_lines_without_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    progress = Progress(2, out)
    with progress.phase("starting generators"):
        pass
    progress.step(1, METRICS)
    progress.error("[bold]disk full[/bold]")
    progress.close()
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
    assert lines[0] == "starting generators..."
    assert lines[1].startswith("starting generators: done in ")
    assert lines[2].startswith("step 1/2 ")
    assert lines[3] == "WARNING: [bold]disk full[/bold]"


def test_a_long_line_is_not_wrapped() -> None:
    out = io.StringIO()
    Progress(2, out).event("x" * 500)
    assert out.getvalue() == "x" * 500 + "\n"


def test_a_terminal_shows_what_is_going_on_and_is_given_back() -> None:
    out = FakeTerminal()
    progress = Progress(2, out)
    with progress.phase("starting generators"), progress.doing("loading weights"):
        status = progress._status()
        progress._console.print(status)
    progress.close()
    progress.close()
    shown = out.getvalue()
    assert "starting generators 0 s  loading weights 0 s" in shown
    assert "\x1b[?25h" in shown  # the cursor is visible again


def test_doing_prints_nothing_into_a_file() -> None:
    out = io.StringIO()
    with Progress(2, out).doing("learning"):
        pass
    assert out.getvalue() == ""


def test_a_phase_that_raises_is_shown_as_failed() -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Progress(2, out).phase("starting learner"):
        raise RuntimeError
    assert "starting learner: failed in " in out.getvalue()


def test_the_time_left_is_judged_by_recent_steps() -> None:
    out = io.StringIO()
    progress = Progress(30, out)
    progress.step(1, {"time/step_s": 1000.0})
    for step in range(2, 12):
        progress.step(step, {"time/step_s": 2.0})
    assert out.getvalue().splitlines()[-1].endswith("38 s left")


def test_an_evaluation_on_its_own_names_its_sets() -> None:
    out = io.StringIO()
    Progress(30, out).step(0, {"eval/held_out/pass_at_1": 0.5, "eval/held_out/reward_mean": 0.25})
    assert out.getvalue() == "evaluated after step 0: held_out pass@1 0.500 reward 0.250\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (12000, "3 h 20 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_summary_says_what_came_of_the_run_and_what_mlflow_lacks() -> None:
    summary = RunSummary(
        status="finished",
        steps=50,
        seconds=492,
        run_dir=Path("runs/a"),
        model=Path("runs/a/model"),
        pass_at_1_before=0.104,
        pass_at_1_after=0.312,
        mlflow="mlflow ui\nthen http://link",
        mlflow_dropped=2,
    )
    assert summary_lines(summary) == [
        "run finished",
        "  steps            50 in 8 min 12 s",
        "  held-out pass@1  0.104 -> 0.312 (+0.208)",
        "  model            runs/a/model",
        "  run folder       runs/a",
        "  MLflow           mlflow ui",
        "                   then http://link",
        "                   2 records missing: funicular metrics sync runs/a",
    ]


def test_a_run_killed_before_its_export_shows_no_model_and_no_result() -> None:
    summary = RunSummary(
        status="killed",
        steps=3,
        seconds=10,
        run_dir=Path("runs/a"),
        model=None,
        pass_at_1_before=0.1,
        pass_at_1_after=None,
        mlflow=None,
    )
    text = "\n".join(summary_lines(summary))
    assert text.startswith("run stopped by a signal; started again, it resumes")
    assert "0.100 -> not evaluated" in text
    assert "none: the run did not get to its export" in text


def test_every_metric_that_the_code_names_is_documented() -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    sections = {name.partition("/")[0] for name in re.findall(r"`([a-z]+/[a-z0-9_<>/]+)`", documented)}
    name = re.compile(rf'"((?:{"|".join(sections)})/[a-z0-9_]+)"')
    named = {
        found
        for folder in ("actors", "launch")
        for source in (ROOT / folder).glob("*.py")
        for found in name.findall(source.read_text(encoding="utf-8"))
    }
    assert {*STEP_METRICS, *PHASES.values()} <= named
    assert {key for key in named if f"`{key}`" not in documented} == set()
