"""The certificate's verdict, table and record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from funicular.actors import probed_learners
from funicular.actors.gradient_errors import GradientComparison, GradientErrors, ParameterError
from funicular.actors.tensor_file import TensorFile, save_tensors
from funicular.launch import certificate_runs
from funicular.launch.certificate import BOUND, Certificate, Row
from funicular.launch.certificate_cuts import Cut
from funicular.launch.certificate_runs import Files
from funicular.launch.recipe import load_recipe
from funicular.launch.verify_loss import finish, verify_loss
from funicular.launch.verify_options import VerifyOptions


def row(cut: str, relative: float, *, judged: bool = True) -> Row:
    parameters = {
        "embedding": ParameterError(difference=relative, expected=1.0),
        "norm": ParameterError(difference=0.0, expected=1e-9),
    }
    return Row(cut=cut, judged=judged, seconds=2.0, errors=GradientErrors(parameters=parameters))


def certificate(*rows: Row) -> Certificate:
    return Certificate(facts={"recipe": "tiny.yaml", "model": "tiny"}, rows=rows)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([row("a", BOUND), row("b", 0.0)], "PASS"),
        ([row("a", BOUND), row("b", 1.01 * BOUND)], "FAIL"),
        ([row("a", 1e-7), row("bfloat16", 0.1, judged=False)], "PASS"),
        ([row("bfloat16", 0.0, judged=False)], "FAIL"),
        ([], "FAIL"),
        ([row("a", math.nan)], "FAIL"),
        ([row("a", math.inf)], "FAIL"),
        ([row("a", 0.0), Row(cut="b", judged=True, seconds=1.0, errors=None, failure="LearnerLost: rank 1")], "FAIL"),
    ],
)
def test_it_passes_only_if_every_judged_cut_was_computed_and_is_within_the_bound(rows: list[Row], verdict: str) -> None:
    assert certificate(*rows).verdict == verdict


def test_the_table_names_cuts_errors_and_the_worst_parameter() -> None:
    lost = Row(cut="2 ranks", judged=True, seconds=1.0, errors=None, failure="LearnerLost: rank 1")
    text = certificate(row("1 rank", 3e-6), row("own types", 0.02, judged=False), lost).text()
    assert "1 rank       " in text
    assert "3.0e-06  3.0e-06 embedding" in text
    assert "(own types)" in text
    assert "not computed: LearnerLost: rank 1" in text
    assert text.splitlines()[-1] == "FAIL: 1 of 2 float32 cuts above 1e-05, or not computed: 2 ranks"
    assert certificate(row("1 rank", 3e-6)).text().splitlines()[-1].startswith("PASS: 1 float32 cuts")


def test_a_cut_of_sharing_is_not_judged_where_the_model_does_not_share() -> None:
    found = row("1 rank", 3e-6), replace(row("prompts shared", 0.0, judged=False), prompts_shared=False)
    lines = certificate(*found).text().splitlines()
    assert any(line.startswith("(prompts shared: not shared by this model) ") for line in lines)
    assert lines[-1].startswith("PASS: 1 float32 cuts")
    first, last = certificate(*found).record()["cuts"]
    assert "prompts_shared" not in first
    assert last["prompts_shared"] is False
    assert certificate(found[1]).verdict == "FAIL"


@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("of_sharing", [True, False])
async def test_the_ranks_say_whether_they_share(
    can_share: bool, of_sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeLearners:
        shared = can_share

        def __init__(self, *_: Any, **__: Any) -> None:
            self.can_share = can_share

        async def errors(self, groups: Any) -> GradientErrors | None:
            return row("", 1e-7).errors

    monkeypatch.setattr(probed_learners, "ProbedLearners", FakeLearners)
    config = load_recipe(["embedded"], []).config
    cut = Cut(name="cut", learner=config.learner, of_sharing=of_sharing)
    made = await certificate_runs._row(config, Files(model=Path("m"), gradient=Path("g")), [], cut, [])
    assert made.judged == (can_share or not of_sharing)
    assert made.prompts_shared == (can_share if of_sharing else None)
    assert made.passes
    FakeLearners.shared = False
    idle = await certificate_runs._row(config, Files(model=Path("m"), gradient=Path("g")), [], cut, [])
    assert idle.passes != (can_share and of_sharing)  # a cut that is there for sharing, and shares nothing


def test_the_record_is_json_with_every_parameter() -> None:
    record = json.loads(json.dumps(certificate(row("a", 3e-6), row("b", math.nan)).record(), allow_nan=False))
    assert record["verdict"] == "FAIL"
    assert record["recipe"] == "tiny.yaml"
    assert record["cuts"][0]["relative_error"] == pytest.approx(3e-6)
    assert record["cuts"][0]["parameters"]["norm"] == {"difference": 0.0, "expected": 1e-9, "relative": 0.0}
    assert record["cuts"][1]["relative_error"] is None


def test_the_exit_status_is_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "certificate.json"
    assert finish(certificate(row("1 rank", 3e-6)), None) == 0
    assert finish(certificate(row("1 rank", 3e-5)), file) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL: 1 of 1 float32 cuts above 1e-05")
    assert json.loads(file.read_text())["verdict"] == "FAIL"


def test_a_file_that_cannot_be_written_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = VerifyOptions(json_file=tmp_path / "missing" / "certificate.json")
    assert verify_loss(load_recipe(["embedded"], []), options) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.fixture
def expected(tmp_path: Path) -> TensorFile:
    file = tmp_path / "gradient.safetensors"
    save_tensors(file, {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.zeros(2).double()})
    return TensorFile(file)


def test_errors_are_of_all_parameters_together_and_of_each(expected: TensorFile) -> None:
    comparison = GradientComparison(expected)
    comparison.add("a", torch.tensor([3.0, 4.5]))
    comparison.add("b", None)
    errors = comparison.result()
    assert errors.relative == pytest.approx(0.1)
    assert errors.worst == "a"
    assert errors.parameters["b"].relative == 0.0


def test_a_gradient_where_none_is_expected_is_infinitely_wrong(expected: TensorFile) -> None:
    comparison = GradientComparison(expected)
    comparison.add("a", torch.tensor([3.0, 4.0]))
    comparison.add("b", torch.tensor([0.0, 1e-9]))
    errors = comparison.result()
    assert errors.relative < 1e-8
    assert (errors.worst, errors.parameters["b"].relative) == ("b", math.inf)


def test_nan_is_the_worst_error(expected: TensorFile) -> None:
    comparison = GradientComparison(expected)
    comparison.add("a", torch.tensor([3.0, 4.0]))
    comparison.add("b", torch.tensor([math.nan, 0.0]))
    errors = comparison.result()
    assert errors.worst == "b"
    assert math.isnan(errors.relative)


def test_parameters_must_be_the_same_on_both_sides(expected: TensorFile) -> None:
    comparison = GradientComparison(expected)
    comparison.add("a", torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match=r"trained in the reference only: b|in the reference only: b"):
        comparison.result()
    with pytest.raises(ValueError, match="c: has a gradient here and none in the reference"):
        comparison.add("c", torch.zeros(1))
    with pytest.raises(ValueError, match=r"b: gradient of shape \(3,\), expected \(2,\)"):
        comparison.add("b", torch.zeros(3))
