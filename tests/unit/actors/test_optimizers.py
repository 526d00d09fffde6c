"""Which parameters an optimizer decays, and which ones Muon takes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from funicular.actors.config import LearnerConfig
from funicular.actors.optimizers import MuonAndAdamW, make_optimizer


class CausalLM(nn.Module):
    """The outline of a causal language model: embedding, a hidden layer with bias and norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.hidden(self.embedding(ids)).tanh()))


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.causal_lm = CausalLM()


def names(policy: Policy, optimizer: torch.optim.Optimizer) -> list[tuple[set[str], float]]:
    by_id = {id(parameter): name for name, parameter in policy.causal_lm.named_parameters()}
    return [({by_id[id(p)] for p in group["params"]}, group["weight_decay"]) for group in optimizer.param_groups]


def backward(policy: Policy, seed: int) -> None:
    policy.zero_grad()
    ids = torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(policy.causal_lm(ids), ids.flip(0)).backward()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_matrices_are_decayed_and_vectors_are_not(optimizer: Any) -> None:
    policy = Policy()
    made = make_optimizer(policy, LearnerConfig(optimizer=optimizer, weight_decay=0.1))
    matrices = {"embedding.weight", "hidden.weight", "head.weight"}
    assert names(policy, made) == [(matrices, 0.1), ({"hidden.bias", "norm.weight"}, 0.0)]


def test_frozen_parameters_are_left_out() -> None:
    policy = Policy()
    policy.causal_lm.requires_grad_(False)
    policy.causal_lm.hidden.weight.requires_grad_(True)
    assert names(policy, make_optimizer(policy, LearnerConfig())) == [({"hidden.weight"}, 0.0)]


def test_muon_takes_hidden_matrices_and_adamw_the_rest_as_torch_does() -> None:
    config = LearnerConfig(optimizer="muon", weight_decay=0.1, learning_rate=0.01)
    policy, plain = Policy(), Policy()
    made = make_optimizer(policy, config)
    vectors = {"hidden.bias", "norm.weight"}
    assert names(policy, made) == [({"hidden.weight"}, 0.1), ({"embedding.weight", "head.weight"}, 0.1), (vectors, 0.0)]
    model = plain.causal_lm
    separate = [
        torch.optim.Muon([model.hidden.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([model.embedding.weight, model.head.weight], lr=0.01, weight_decay=0.1),
        torch.optim.AdamW([model.hidden.bias, model.norm.weight], lr=0.01, weight_decay=0.0),
    ]
    for seed in range(3):
        backward(policy, seed)
        backward(plain, seed)
        made.step()
        for optimizer in separate:
            optimizer.step()
    for parameter, expected in zip(policy.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_muon_saves_and_loads_as_one_optimizer() -> None:
    config = LearnerConfig(optimizer="muon", learning_rate=0.01)
    policy = Policy()
    optimizer = make_optimizer(policy, config)
    backward(policy, 0)
    optimizer.step()
    saved, weights = deepcopy((optimizer.state_dict(), policy.state_dict()))
    assert len(saved["state"]) == len(list(policy.parameters()))

    other = Policy()
    other.load_state_dict(weights)
    resumed = make_optimizer(other, config)
    resumed.load_state_dict(saved)
    for one, its in ((policy, optimizer), (other, resumed)):
        for group in its.param_groups:
            group["lr"] = 0.02
        backward(one, 1)
        its.step()
    for parameter, expected in zip(other.parameters(), policy.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_optimizers_of_whole_matrices_are_refused_under_zero() -> None:
    with pytest.raises(ValueError, match=r"learner\.zero_stage=0"):
        make_optimizer(Policy(), LearnerConfig(optimizer="muon", zero_stage=1))


def test_muon_needs_a_hidden_matrix() -> None:
    policy = Policy()
    policy.causal_lm.hidden.requires_grad_(False)
    with pytest.raises(ValueError, match="none is trained"):
        MuonAndAdamW(policy.causal_lm, [p for p in policy.parameters() if p.requires_grad], LearnerConfig())
