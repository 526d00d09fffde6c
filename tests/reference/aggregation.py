"""The weight of a token in the sum that is the loss of an optimizer batch."""


def token_weight(
    aggregation: str,
    n_i: int,
    *,
    rows: float,
    tokens: float,
    max_completion_tokens: int | None,
    group_count: float | None,
    tokens_of_group: float | None,
) -> float:
    if aggregation == "sequence":
        return 1 / (n_i * rows)
    if aggregation == "token":
        return 1 / tokens
    if aggregation == "constant":
        assert max_completion_tokens is not None
        return 1 / (rows * max_completion_tokens)
    if aggregation == "sequence_sum":
        return 1 / rows
    if aggregation == "prompt":
        assert group_count is not None
        assert tokens_of_group is not None
        return 1 / (group_count * tokens_of_group)
    raise ValueError(aggregation)
