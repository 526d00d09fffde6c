"""The bound of generation, from sizes that can be counted by hand; and what a user is shown."""

from __future__ import annotations

from funicular.actors.benched_engine import Limits, Round, Size
from funicular.launch.bench_generate import Measured, table
from funicular.launch.config import Config
from funicular.launch.generation_bound import bound_of

SIZE = Size(body_parameters=900, head_parameters=100, parameter_bytes=4, cache_bytes_per_token=10)
ROUND = Round(seconds=100.0, prompt_tokens=(5, 7), sequences=4, tokens=3)
"""Two tasks, two completions each: a first token out of the prefill, and two steps."""


def test_decoding_reads_all_weights_at_each_step_and_what_stands_before_each_sequence() -> None:
    bound = bound_of(ROUND, SIZE, Limits(bytes_per_s=1.0, flops_per_s=1e30))
    read_before = 2 * (6 + 7) + 2 * (8 + 9)
    assert bound.memory_s == 2 * 4000 + 10 * read_before
    assert bound.prefill_s == 4000, "one pass"
    assert (bound.binding, bound.seconds) == ("memory", bound.prefill_s + bound.memory_s)


def test_arithmetic_is_two_operations_a_parameter_and_a_prompt_is_computed_once() -> None:
    bound = bound_of(ROUND, SIZE, Limits(bytes_per_s=1e30, flops_per_s=1.0))
    assert bound.arithmetic_s == 2 * 1000 * 2 * 4
    assert bound.prefill_s == 2 * (900 * 12 + 100 * 4)
    assert (bound.binding, bound.seconds) == ("arithmetic", bound.prefill_s + bound.arithmetic_s)


def test_the_table_says_how_far_the_engine_is_from_its_bound() -> None:
    limits = Limits(bytes_per_s=400.0, flops_per_s=1e12)
    bounds = [bound_of(ROUND, SIZE, limits)]
    text = table(Config(), Measured(limits=limits, size=SIZE, rounds=[ROUND], bounds=bounds))
    seconds = bounds[0].seconds
    measured = next(line for line in text.splitlines() if line.startswith("measured"))
    assert measured.split() == ["measured", "100.00", "0", f"{seconds / 100:.0%}"]
    assert "bound, by memory" in text
