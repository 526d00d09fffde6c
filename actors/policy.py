"""The policy as the learner runs it: log-probabilities of completion tokens, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from funicular.actors.head import OutputHead, check_logits

_PROBE_TOKENS = 4


class PolicyModel(nn.Module):
    """A Hugging Face causal language model behind one `forward` that DeepSpeed can wrap.

    Prompt tokens get no logits; those of completion tokens exist tile by tile (`token_logprobs`). Dropout is off.

    Args:
        causal_lm: a model whose logits are its output embedding of the last hidden states, scaled or soft-capped as
            its configuration says.
        compute_dtype: type of matrix products; where it differs from the parameters' type, autocast.
        head_dtype: `OutputHead`.

    Raises:
        ValueError: the model changes its logits in another way.
    """

    def __init__(
        self, causal_lm: Any, *, compute_dtype: torch.dtype, head_dtype: Literal["auto", "float32"] = "auto"
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm  # first: a parameter has the first of its names
        self.head = OutputHead(causal_lm, dtype=head_dtype)
        self._compute_dtype = compute_dtype
        self._check_head()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        selection: torch.Tensor,
        *,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of the selected tokens, and the entropy of the distributions they were drawn from.

        Args:
            input_ids: (B, L) prompt, completion, padding.
            selection: (N,) positions in the flattened input_ids of the tokens to score; never a row's first.
            temperature: logits are divided by it.

        Returns:
            Log-probabilities and entropies in nats, (N,) float32 each, both with gradient.
        """
        device = input_ids.device.type
        mixed = self._compute_dtype != self.causal_lm.dtype
        with torch.autocast(device, dtype=self._compute_dtype, enabled=mixed):
            hidden = self._hidden(input_ids, attention_mask, position_ids)
            predictors = hidden.reshape(-1, hidden.shape[-1])[selection - 1]
            logprobs, entropies = self.head(predictors, input_ids.reshape(-1)[selection], temperature)
        return logprobs, entropies

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> Any:
        decoder = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
        out = decoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        return out.last_hidden_state

    @torch.no_grad()
    def _check_head(self) -> None:
        ids = torch.arange(_PROBE_TOKENS, device=self.head.weight.device)[None]
        check_logits(self.causal_lm, ids, self._hidden(ids, torch.ones_like(ids), ids))


def load_causal_lm(folder: str | Path, dtype: torch.dtype) -> Any:
    """Load the model of a Hugging Face folder, with every dropout off.

    Raises:
        ValueError: it keeps persistent buffers, which weight sync does not send.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    model.eval()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    extra = sorted(set(model.state_dict()) - parameters)
    if extra:
        raise ValueError(
            f"model.path: {folder} keeps state besides its parameters ({', '.join(extra[:3])}), which weight sync "
            "does not send; use a model of parameters only"
        )
    return model


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute each decoder layer in the backward pass, with dropout still off.

    transformers recomputes only in layers that are in training mode, so those, and nothing in them, are put there.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
