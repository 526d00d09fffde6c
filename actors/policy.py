"""The policy as the learner runs it: log-probabilities of completion tokens, and of nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from funicular.actors.activation_offload import offloaded_activations
from funicular.actors.attention import attention_arguments
from funicular.actors.collate import Batch
from funicular.actors.head import OutputHead, TeacherTarget, check_logits
from funicular.actors.images import is_vision_model
from funicular.actors.layout import Layout
from funicular.actors.packed_rows import decoder_of, switch_to_packed_rows, switch_to_shared_prompts
from funicular.actors.sequence import SequenceGroup, Share, gather_tokens, pad_and_cut, refuse_model, share_of
from funicular.actors.vision import PassImages, vision_of

_PROBE_TOKENS = 4


class PolicyModel(nn.Module):
    """A Hugging Face causal language model behind one `forward` that DeepSpeed can wrap.

    Prompt tokens get no logits; those of completion tokens exist tile by tile (`token_logprobs`). Dropout is off.

    Args:
        causal_lm: a model whose logits are its output embedding of the last hidden states, scaled or soft-capped as
            its configuration says.
        compute_dtype: type of matrix products; where it differs from the parameters' type, autocast.
        head_dtype: `OutputHead`.
        packing: run over packed rows, if the model can; `packed` says whether it does.
        share_prompts: run over packed rows that share their beginnings, if the model can; `shares_prompts` says whether
            it does.
        offload_activations: keep the decoder's activations on the host between its forward and backward pass.
        sequence_group: the ranks that share the tokens of each pass; None: this rank computes all of them.

    Raises:
        ValueError: the model changes its logits in another way, or its passes cannot be shared.
    """

    def __init__(
        self,
        causal_lm: Any,
        *,
        compute_dtype: torch.dtype,
        head_dtype: Literal["auto", "float32"] = "auto",
        packing: bool = False,
        share_prompts: bool = False,
        offload_activations: bool = False,
        sequence_group: SequenceGroup | None = None,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm  # first: a parameter has the first of its names
        self.head = OutputHead(causal_lm, dtype=head_dtype)
        self._compute_dtype = compute_dtype
        self._offload_activations = offload_activations
        self._vision = vision_of(causal_lm)
        self._check_head()
        self.packed = packing and switch_to_packed_rows(causal_lm, compute_dtype)
        self.shares_prompts = self.packed and share_prompts and switch_to_shared_prompts(causal_lm)
        self._sequence_group = sequence_group
        if sequence_group is not None:
            refuse_model(causal_lm, packed=self.packed, size=sequence_group.size)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        labels: torch.Tensor,
        *,
        temperature: float,
        layout: Layout | None = None,
        target: TeacherTarget | None = None,
        images: PassImages | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Log-probability of the tokens to score, and the entropy of the distributions they were drawn from.

        Args:
            input_ids: (B, L) prompt, completion, padding; or (1, T) packed rows.
            attention_mask: (B, L); None for packed rows.
            position_ids: as input_ids; of packed rows, from 0 in each.
            predictors: (N,) position in the flattened input_ids of the token before each that is to be scored. First
                tokens of completions that share their prompt have the same.
            labels: (N,) ids of the tokens to score.
            temperature: logits are divided by it.
            layout: of packed rows; needed where `packed`, and None elsewhere.
            target: what a teacher says of the same tokens; of this rank's, where ranks share a pass.
            images: of padded rows; None: they have none.

        Returns:
            Log-probabilities and entropies in nats, (N,) float32 each, both with gradient. With a target, besides: the
            divergence from it, with gradient, and KL(student || teacher), without.
        """
        with self._precision(input_ids.device):
            states = self.predicting_states(input_ids, attention_mask, position_ids, predictors, layout, images)
            share = self._share(input_ids, predictors)
            if share is None:
                return self.head(states, labels, temperature, target)
            # Even without tokens to score: under ZeRO-3 the call is a collective.
            scores = self.head(states, labels[share.own], temperature, target)
            return gather_tokens(scores, share)

    def predicting_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        layout: Layout | None = None,
        images: PassImages | None = None,
    ) -> torch.Tensor:
        """(N, H) hidden states before the tokens to score; arguments as those of `forward`.

        Where ranks share a pass: of those that stand in this rank's shard, which may be none.
        """
        share = self._share(input_ids, predictors)
        sharing: dict[str, Any] = {}
        if share is not None and layout is not None:
            input_ids, position_ids = pad_and_cut(input_ids, share), pad_and_cut(position_ids, share)
            layout = layout.followed_by(share.padding)
            predictors = predictors[share.own] - share.start
            sharing = {"sequence_group": share.group}
        with self._precision(input_ids.device), offloaded_activations() if self._offload_activations else nullcontext():
            hidden = self._hidden(input_ids, attention_mask, position_ids, layout, images, **sharing)
        return hidden.reshape(-1, hidden.shape[-1])[predictors]

    def _share(self, input_ids: torch.Tensor, predictors: torch.Tensor) -> Share | None:
        return None if self._sequence_group is None else share_of(input_ids.shape[1], predictors, self._sequence_group)

    def _precision(self, device: torch.device) -> torch.autocast:
        mixed = self._compute_dtype != self.causal_lm.dtype
        return torch.autocast(device.type, dtype=self._compute_dtype, enabled=mixed)

    def _hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        layout: Layout | None = None,
        images: PassImages | None = None,
        **sharing: Any,
    ) -> Any:
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        if layout is not None:
            implementation = self.causal_lm.config._attn_implementation
            arguments = {**attention_arguments(implementation, layout, input_ids.device), **sharing}
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        if self._vision is not None:
            inputs = self._vision.decoder_inputs(input_ids, attention_mask, position_ids, images)
        return decoder_of(self.causal_lm)(use_cache=False, **inputs, **arguments).last_hidden_state

    @torch.no_grad()
    def _check_head(self) -> None:
        ids = torch.arange(_PROBE_TOKENS, device=self.head.weight.device)[None]
        check_logits(self.causal_lm, ids, self._hidden(ids, torch.ones_like(ids), ids))


def score_batch(model: Any, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of a batch's trained tokens, (N,) each, by a policy or its DeepSpeed engine."""
    logprobs, entropies = compare_batch(model, batch, temperature, None)
    return logprobs, entropies


def compare_batch(model: Any, batch: Batch, temperature: float, target: TeacherTarget | None) -> tuple[Any, ...]:
    """What `PolicyModel.forward` says of a batch's trained tokens, compared with a teacher if there is a target."""
    return model(
        batch.input_ids,
        batch.attention_mask,
        batch.position_ids,
        batch.predictors,
        batch.labels,
        temperature=temperature,
        layout=batch.layout,
        target=target,
        images=batch.images,
    )


def load_causal_lm(folder: str | Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load the model of a Hugging Face folder, a vision-language model with its tower, with every dropout off.

    Args:
        options: further ones of transformers' `from_pretrained` (`quantization.loading_options`).

    Raises:
        ValueError: it keeps persistent buffers, which weight sync does not send.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if is_vision_model(folder) else AutoModelForCausalLM
    model = kind.from_pretrained(str(folder), dtype=dtype, **options)
    model.eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' `sdpa` leaves the soft-cap out (Gemma 2)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    packed = tuple(f"{name}." for name in parameters)  # `weight.absmax` says how a packed weight is to be read
    extra = sorted(name for name in model.state_dict() if name not in parameters and not name.startswith(packed))
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
