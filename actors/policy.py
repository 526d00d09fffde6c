"""The policy as the learner runs it: log-probabilities of completion tokens, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_PROBE_TOKENS = 4
_HEAD_TOLERANCE = 1e-3


class PolicyModel(nn.Module):
    """A Hugging Face causal language model behind one `forward` that DeepSpeed can wrap.

    Prompt tokens get no logits; the logits of completion tokens exist one chunk at a time and are computed again in
    the backward pass. Dropout is off.

    Args:
        causal_lm: a model whose logits are its output embedding of the last hidden states, nothing added.
        compute_dtype: type of matrix products; where it differs from the parameters' type, autocast.

    Raises:
        ValueError: the model changes its logits after the output head (soft-capping, scaling).
    """

    def __init__(self, causal_lm: Any, *, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.causal_lm = causal_lm
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
        head_chunks: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of the selected tokens, and the entropy of the distributions they were drawn from.

        Args:
            input_ids: (B, L) prompt, completion, padding.
            selection: (N,) positions in the flattened input_ids of the tokens to score; never a row's first.
            temperature: logits are divided by it.
            head_chunks: calls of the output head. Under ZeRO-3 each call is a collective: the same on all ranks.

        Returns:
            Log-probabilities, (N,) float32, with gradient; entropies in nats, (N,) float32, without.
        """
        device = input_ids.device.type
        mixed = self._compute_dtype != self.causal_lm.dtype
        with torch.autocast(device, dtype=self._compute_dtype, enabled=mixed):
            hidden = self._hidden(input_ids, attention_mask, position_ids)
            predictors = hidden.reshape(-1, hidden.shape[-1])[selection - 1]
            labels = input_ids.reshape(-1)[selection]
            scored = [
                self._score_chunk(h, y, temperature, recompute=head_chunks > 1)
                for h, y in zip(predictors.tensor_split(head_chunks), labels.tensor_split(head_chunks), strict=True)
            ]
        logprobs, entropies = zip(*scored, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> Any:
        decoder = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
        out = decoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        return out.last_hidden_state

    def _score_chunk(self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, *, recompute: bool) -> Any:
        if recompute and torch.is_grad_enabled():
            return checkpoint(self._score, hidden, labels, temperature, use_reentrant=False)
        return self._score(hidden, labels, temperature)

    def _score(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.causal_lm.get_output_embeddings()(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        logprobs_V = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs_V.exp() * logprobs_V).sum(-1)
        return logprobs_V.gather(-1, labels[:, None]).squeeze(-1), entropy

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare the model's own logits with ours: a scale or soft-cap that we do not know would be silent."""
        head = self.causal_lm.get_output_embeddings()
        ids = torch.arange(_PROBE_TOKENS, device=head.weight.device)[None]
        expected = self.causal_lm(input_ids=ids, use_cache=False).logits.float()
        got = head(self._hidden(ids, torch.ones_like(ids), ids)).float()
        error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if error > _HEAD_TOLERANCE:
            raise ValueError(
                f"model.path: {type(self.causal_lm).__name__} changes its logits after the output head (relative "
                f"difference {error:.2g}), as final_logit_softcapping or logit_scale do; the learner computes plain "
                "logits only. Use a model without them (Llama, Qwen, SmolLM, Mistral, …)"
            )


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
