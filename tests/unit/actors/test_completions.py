"""Packing keeps every token with its log-probability and the version that sampled it."""

import numpy as np
import pytest

from funicular.actors.completions import Completion, describe_group, pack_group


def completions() -> list[Completion]:
    return [
        Completion(token_ids=[5, 6, 7], logprobs=[-0.1, -0.2, -0.3], spans=[("1.1", 2), ("2.4", 3)]),
        Completion(token_ids=[8], logprobs=[float("nan")], truncated=True, spans=[("2.4", 1)]),
    ]


def test_tokens_stay_with_their_versions_and_completions() -> None:
    payload = pack_group("g", [1, 2], completions(), {"1.1": 1, "2.4": 2}, ("a", "b"))
    assert payload.token_ids[payload.completion(0)].tolist() == [5, 6, 7]
    assert payload.token_ids[payload.completion(1)].tolist() == [8]
    assert payload.token_versions.tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(payload.generator_logprobs[:3], [-0.1, -0.2, -0.3], rtol=1e-6)


def test_a_record_tells_void_and_truncated_completions() -> None:
    payload = pack_group("g", [1, 2], completions(), {"1.1": 1, "2.4": 2}, ("a", "b"))
    record = describe_group("generator-0", payload, completions(), 1.5)
    assert record.finite_G == (True, False)
    assert record.truncated_G == (False, True)
    assert (record.oldest_version, record.newest_version, record.lengths_G) == (1, 2, (3, 1))


def test_tokens_of_unknown_weights_are_an_error() -> None:
    group = completions()
    group[0].spans = [("1.1", 2)]
    with pytest.raises(RuntimeError, match="3 tokens, weights known of 2"):
        pack_group("g", [1, 2], group, {"1.1": 1, "2.4": 2}, ("a", "b"))
