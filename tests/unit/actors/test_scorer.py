import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from funicular.actors.errors import RunStopped
from funicular.actors.scorer import ErrorStreaks, Scorer
from funicular.actors.types import GroupPayload
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Task


def payload(texts: tuple[str, ...], lengths: tuple[int, ...]) -> GroupPayload:
    total = sum(lengths)
    return GroupPayload(
        group_id="g",
        prompt_ids=np.arange(3, dtype=np.int32),
        token_ids=np.arange(total, dtype=np.int32),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        generator_logprobs=np.zeros(total, dtype=np.float32),
        token_versions=np.zeros(total, dtype=np.int32),
        texts=texts,
    )


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Scorer]:
    (tmp_path / "mine.py").write_text(
        "def first_token(completion_ids, **_):\n    return [ids[0] for ids in completion_ids]\n"
    )
    config = RewardConfig(
        functions={"correctness": 1.0, "length": 0.5, "mine.py:first_token": 0.1},
        options={"length": {"max": 2}},
    )
    scorer = Scorer(config, str(tmp_path))
    yield scorer
    scorer.close()


def test_a_payload_becomes_verdicts_in_order(scorer: Scorer) -> None:
    task = Task(task_id="t", prompt="Q", answer="5", verifier="exact_number")
    report = scorer.score(task, payload(("5", "6", "5"), (2, 3, 4)))
    assert [v.breakdown["length"] for v in report.verdicts_G] == [1.0, 0.5, 0.0]
    assert [v.breakdown["mine.py:first_token"] for v in report.verdicts_G] == [0.0, 2.0, 5.0]
    assert [v.reward for v in report.verdicts_G] == pytest.approx([1.5, 0.45, 1.5])
    assert report.raised == {}
    assert report.seconds > 0


def test_a_function_that_cannot_be_loaded_stops_the_scorers_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gone.py"):
        Scorer(RewardConfig(functions={"gone.py:f": 1.0}), str(tmp_path))


def test_errors_in_a_row_stop_the_run_and_name_the_function() -> None:
    streaks = ErrorStreaks(3)
    streaks.observe({"a.py:f": "KeyError: x"})
    streaks.observe({"a.py:f": "KeyError: y", "b.py:g": "OSError"})
    with pytest.raises(RunStopped, match=r"a\.py:f raised in 3 groups in a row .*KeyError: z"):
        streaks.observe({"a.py:f": "KeyError: z"})


def test_a_good_group_ends_a_streak() -> None:
    streaks = ErrorStreaks(2)
    for _ in range(5):
        streaks.observe({"a.py:f": "KeyError"})
        streaks.observe({"b.py:g": "OSError"})
        streaks.observe({})


def test_the_scorer_loads_neither_torch_nor_ray() -> None:
    code = "import sys, funicular.actors.scorer; sys.exit(str({'torch', 'ray'} & set(sys.modules) or '') or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
