"""Ranks that share the tokens of a pass, in processes of their own, against one that does not. No DeepSpeed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from funicular.actors.layout import Layout
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing
from funicular.actors.sequence import (
    SequenceGroup,
    join_sequence_group,
    pad_and_cut,
    refuse_heads,
    refuse_model,
    share_of,
)
from tests.random_models import random_model

CPU = torch.device("cpu")
ROWS = tuple(map(Layout.of_rows, ((19, 18, 7, 7, 2, 3), (2,), (3, 2), (64,))))
"""Passes of many and uneven rows, of fewer tokens than ranks, of a single row."""
TREES = (
    Layout(lengths=(9, 4, 1, 6, 5, 3, 2, 2), parents=(None, 0, 0, 0, None, None, 5, 6)),
    Layout(lengths=(1, 1, 1), parents=(None, 0, 0)),
)
"""Passes whose rows share their beginnings."""
SIZES = (2, 4)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 3}),
    ("qwen3", {"num_key_value_heads": 1}),
    ("mistral", {"sliding_window": 6, "num_key_value_heads": 4}),
    ("gemma2", {"sliding_window": 6, "attn_logit_softcapping": 2.0}),
]
PASSES = [
    *((architecture, options, layout) for architecture, options in MODELS for layout in ROWS),
    *((architecture, options, layout) for architecture, options in MODELS[:3] for layout in TREES),
]


def scored(model: Any, layout: Layout, group: SequenceGroup | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(2, N) log-probabilities and entropies of a pass, and the gradients of a loss that is not linear in them."""
    policy = PolicyModel(
        model, compute_dtype=torch.float32, packing=True, share_prompts=layout.shares, sequence_group=group
    )
    tokens = sum(layout.lengths)
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(60, (1, tokens), generator=generator)
    # In no order, and some of them several times: a prompt's last token is before several completions.
    predictors = torch.randint(tokens, (max(1, tokens // 2),), generator=generator)
    labels = torch.randint(60, (len(predictors),), generator=generator)
    model.zero_grad()
    positions = layout.positions(CPU)
    out = torch.stack(policy(ids, None, positions, predictors, labels, temperature=0.8, layout=layout))
    (out[0].mean().exp() + (out[1] * out[0]).sum()).backward()
    return out.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def share(rank: int, folder: str) -> None:
    """One of four ranks: what it scores, and its gradients added up over its group, go to a file."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 4)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=4, timeout=timedelta(seconds=300))
    found = []
    for group in [join_sequence_group(rank, 4, size, timeout_s=300) for size in SIZES]:
        assert group is not None
        for architecture, options, layout in PASSES:
            model = random_model(architecture, **options)
            if layout in (ROWS[0], TREES[0]):
                enable_gradient_checkpointing(model)
            out, gradients = scored(model, layout, group)
            for gradient in gradients:
                distributed.all_reduce(gradient, group=group.process_group)
            found.append((out, gradients))
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_that_share_a_pass_find_what_one_rank_finds(tmp_path: Path) -> None:
    """Log-probabilities, entropies and gradients, whatever the rows, the key heads and the kind of attention."""
    torch.multiprocessing.spawn(share, (str(tmp_path),), nprocs=4)
    expected = [scored(random_model(a, **options), layout, None) for a, options, layout in PASSES]
    for rank in range(4):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for (out, gradients), (expected_out, expected_gradients) in zip(found, expected * len(SIZES), strict=True):
            torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-5)
            whole = float(torch.stack([b.norm() for b in expected_gradients]).norm())
            for a, b in zip(gradients, expected_gradients, strict=True):
                assert float((a - b).norm()) <= 1e-5 * float(b.norm()) + 1e-6 * whole


def group_of(size: int, rank: int = 0) -> SequenceGroup:
    return SequenceGroup(process_group=None, size=size, rank=rank)


@pytest.mark.parametrize("tokens", range(1, 14))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_shards_are_equally_long_and_hold_every_token_in_order(tokens: int, size: int) -> None:
    whole = torch.arange(1, tokens + 1)[None]
    predictors = torch.arange(tokens - 1).flip(0).repeat(2)
    shares = [share_of(tokens, predictors, group_of(size, rank)) for rank in range(size)]
    parts = [pad_and_cut(whole, share) for share in shares]
    assert len({part.shape for part in parts}) == 1
    assert torch.cat(parts, 1)[0].tolist() == [*range(1, tokens + 1), *[0] * shares[0].padding]
    assert shares[0].padding < size
    assert torch.equal(torch.cat([share.own for share in shares]), shares[0].order)
    assert torch.equal(shares[0].order.sort().values, torch.arange(2 * (tokens - 1)))
    for share, count in zip(shares, shares[0].counts, strict=True):
        assert all(share.start <= place < share.end for place in predictors[share.own].tolist())
        assert len(share.own) == count


def test_heads_that_cannot_be_dealt_out_are_refused() -> None:
    refuse_heads(14, 7)
    with pytest.raises(
        ValueError, match=r"4 does not divide the model's 14 attention heads; expected one of 1, 2, 7, 14"
    ):
        refuse_heads(14, 4)


def test_a_model_that_cannot_be_cut_is_refused_with_the_reason() -> None:
    model = random_model("llama")
    refuse_model(model, packed=True, size=2)
    with pytest.raises(ValueError, match="LlamaForCausalLM does not run over packed rows"):
        refuse_model(model, packed=False, size=2)
    with pytest.raises(ValueError, match="3 does not divide the model's 4 attention heads"):
        PolicyModel(model, compute_dtype=torch.float32, packing=True, sequence_group=group_of(3))
    stretched = random_model("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ValueError, match="rotary embedding of LlamaForCausalLM is 'dynamic'"):
        refuse_model(stretched, packed=True, size=2)
    with pytest.raises(ValueError, match=r"sequence_parallel: 2 does not divide learner\.ranks=3"):
        join_sequence_group(0, 3, 2, timeout_s=1)
