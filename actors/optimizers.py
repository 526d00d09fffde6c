"""torch.optim classes over the policy's parameters, and which of them are decayed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from funicular.actors.config import LearnerConfig

WHOLE_MATRICES = ("adafactor", "muon")
"""They look at whole matrices. ZeRO hands optimizers a flat piece of all parameters of a group together."""
_MUON_MOMENTUM = 0.95

Group = dict[str, Any]


def make_optimizer(policy: Any, config: LearnerConfig) -> Optimizer:
    """The optimizer of the policy's trainable parameters.

    Matrices are decayed by `weight_decay`; what has one dimension (biases, norms, DoRA magnitudes) is not, as in
    transformers' Trainer, hence TRL, and OpenRLHF. DeepSpeed takes the decay of each group over.

    Args:
        policy: a PolicyModel, before ZeRO partitions it.

    Raises:
        ValueError: the optimizer needs whole matrices, which this ZeRO stage does not give it.
    """
    if config.optimizer in WHOLE_MATRICES and config.zero_stage > 0:
        raise ValueError(
            f"learner.optimizer: {config.optimizer} looks at whole matrices, and with learner.zero_stage="
            f"{config.zero_stage} it would get flat pieces of them; set learner.zero_stage=0 or learner.optimizer=adamw"
        )
    trained = [p for p in policy.parameters() if p.requires_grad]
    if config.optimizer == "muon":
        return MuonAndAdamW(policy.causal_lm, trained, config)
    groups = _decay_groups(trained, config)
    if config.optimizer == "adamw":
        return _adamw(groups, config)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum or 0.0)


class MuonAndAdamW(Optimizer):
    """torch.optim.Muon for matrices of hidden layers, AdamW for embeddings, output head and vectors.

    Muon's step is scaled to AdamW's size (arXiv 2502.16982, section 2.2), so that both have one learning rate. The
    two share their groups and state with this one, which makes it save and load as one optimizer.
    """

    def __init__(self, causal_lm: Any, trained: list[torch.nn.Parameter], config: LearnerConfig) -> None:
        ends = (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
        not_hidden = {id(parameter) for module in ends for parameter in module.parameters()}
        hidden = [p for p in trained if p.ndim == 2 and id(p) not in not_hidden]
        if not hidden:
            raise ValueError("learner.optimizer: muon updates matrices of hidden layers, and none is trained")
        chosen = {id(parameter) for parameter in hidden}
        self._muon = torch.optim.Muon(
            hidden,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=_MUON_MOMENTUM if config.momentum is None else config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        others = _decay_groups([p for p in trained if id(p) not in chosen], config)
        self._adamw = _adamw(others, config) if others else None
        super().__init__([*self._muon.param_groups, *(self._adamw.param_groups if self._adamw else ())], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody passes a closure
        """Update all parameters from their gradients."""
        self._muon.step()
        if self._adamw:
            self._adamw.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # which `load_state_dict` ends with: groups and state are new objects now
        self._share()

    def _share(self) -> None:
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._muon.state = self.state
        if self._adamw:
            self._adamw.param_groups = [group for group in self.param_groups if "betas" in group]
            self._adamw.state = self.state


def _decay_groups(parameters: Iterable[torch.nn.Parameter], config: LearnerConfig) -> list[Group]:
    groups: list[Group] = [
        {"params": [], "weight_decay": config.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in parameters:
        groups[parameter.ndim < 2]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _adamw(groups: list[Group], config: LearnerConfig) -> Optimizer:
    # Fused: one pass over memory, where the default makes a dozen.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), fused=True)
