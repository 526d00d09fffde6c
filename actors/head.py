"""The output head as the learner calls it: a module of its own, once per pass, that gives log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from funicular.actors.logit_tiles import Tiling
from funicular.actors.token_divergences import TeacherStates, token_divergences
from funicular.actors.token_logprobs import LogitMap, token_logprobs

_PROBE_LOGIT = 100.0
"""Greatest logit in the probe: far above every soft-cap in use, so that one that is not known shows."""
_TOLERANCE = 1e-3
_COARSE_TOLERANCE = 2e-2
"""In bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTarget:
    """What a pass is compared with, besides giving log-probabilities."""

    states: TeacherStates
    """Of the pass's tokens."""
    beta: float
    """Of the generalised Jensen-Shannon divergence."""
    temperature: float
    """Of both distributions."""


class OutputHead(nn.Module):
    """Hidden states and labels in, log-probabilities and entropies out; logits exist tile by tile.

    It holds the causal language model's own output embedding, tied or not, as a parameter: under ZeRO-3 DeepSpeed's
    hooks gather the parameters of the module that is called, for its forward and again for its backward pass. Each call
    is a collective then; call it once per pass, on every rank. It has no state of its own: the parameter is saved and
    loaded as the model's.

    Args:
        dtype: float32 multiplies in float32 whatever the weights' type and autocast are (vLLM: `head_dtype`); auto
            does not.
    """

    def __init__(self, causal_lm: Any, *, dtype: Literal["auto", "float32"] = "auto") -> None:
        super().__init__()
        embedding = causal_lm.get_output_embeddings()
        self.weight = embedding.weight
        self.bias = getattr(embedding, "bias", None)
        self._dtype = torch.float32 if dtype == "float32" else None
        self.logit_map = logit_map_of(causal_lm.config)
        self.tiling: Tiling | None = None
        """Sizes of the tiles in which logits exist; None: the device's. Only rounding depends on them."""

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, target: TeacherTarget | None = None
    ) -> tuple[torch.Tensor, ...]:
        """(N, H) and (N,) to log-probabilities and entropies, (N,) float32 each; `token_logprobs`.

        With a target, the divergence from it and KL(student || teacher) come besides; `token_divergences`. All in one
        call, because each is a collective under ZeRO-3.
        """
        dtype = self._dtype
        device = hidden.device.type
        if dtype is None and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        product_dtype = dtype or self.weight.dtype
        scores = token_logprobs(
            hidden,
            self.weight,
            labels,
            bias=self.bias,
            temperature=temperature,
            logit_map=self.logit_map,
            product_dtype=product_dtype,
            tiling=self.tiling,
        )
        if target is None:
            return scores
        divergences = token_divergences(
            hidden,
            self.weight,
            target.states,
            beta=target.beta,
            temperature=target.temperature,
            bias=self.bias,
            logit_map=self.logit_map,
            product_dtype=product_dtype,
        )
        return *scores, *divergences

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: see the class."""

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Nothing: see the class."""


def logit_map_of(config: Any) -> LogitMap:
    """What a model of this configuration does to its logits: Gemma 2, Cohere, Granite, Falcon-H1 and their kin."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return LogitMap(scale=scale, softcap=getattr(config, "final_logit_softcapping", None))


def refuse_adapted_head(causal_lm: Any) -> None:
    """The head multiplies by the output embedding's own weight, so adapters on it would be ignored.

    Raises:
        ValueError: it has adapters.
    """
    embedding = causal_lm.get_output_embeddings()
    if hasattr(embedding, "base_layer"):
        name = next(name for name, module in causal_lm.named_modules() if module is embedding)
        raise ValueError(
            f"learner.lora_targets: {name} is the output head, which the learner multiplies tile by tile, without "
            "adapters; name layers of the decoder only, or write all-linear, which leaves the head out"
        )


@torch.no_grad()
def check_logits(causal_lm: Any, input_ids: torch.Tensor, hidden: torch.Tensor) -> None:
    """Compare the model's own logits with ours: a scale or soft-cap that we do not know would be silent.

    The head's products are enlarged in both, so that a soft-cap shows whatever the weights are.

    Args:
        input_ids: (1, L).
        hidden: (1, L, H), what the model's decoder makes of them.

    Raises:
        ValueError: they differ.
    """
    embedding = causal_lm.get_output_embeddings()
    products = embedding(hidden).float()
    gain = float(_PROBE_LOGIT / products.abs().max().clamp(min=1e-6))
    hook = embedding.register_forward_hook(lambda module, inputs, output: output * gain)
    try:
        expected = causal_lm(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    logit_map = logit_map_of(causal_lm.config)
    got = products * (gain * logit_map.scale)
    if logit_map.softcap is not None:
        got = logit_map.softcap * torch.tanh(got / logit_map.softcap)
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if error > (_COARSE_TOLERANCE if hidden.dtype.itemsize < 4 else _TOLERANCE):
        raise ValueError(
            f"model.path: {type(causal_lm).__name__} changes its logits (relative difference {error:.2g}) by more than "
            "final_logit_softcapping, logit_scale, logits_scaling and lm_head_multiplier of its config.json say, and "
            "the learner would compute other ones. Use another model (Llama, Qwen, Gemma, Cohere, Granite, SmolLM, …)"
        )
