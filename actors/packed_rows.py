"""Whether a model's decoder can run over packed rows, and over rows that share their prompts, found by trying."""

from __future__ import annotations

import logging
from typing import Any

import torch

from funicular.actors.attention import (
    FLASH_ATTENTION,
    ROWS_ATTENTION,
    attention_arguments,
    rows_attention,
)
from funicular.actors.layout import Layout
from funicular.actors.sequence import exchange_around

log = logging.getLogger(__name__)

_PROBE_LENGTHS = (5, 3, 4)
_PROBE_TREE = Layout(lengths=(5, 3, 4, 1, 3), parents=(None, 0, 0, 0, None))
_PROBE_ROWS = Layout.of_rows((8, 9, 6, 3))
"""The same rows, each with a prompt of its own."""
_PROBE_TOKENS = (range(0, 8), (*range(0, 5), *range(8, 12)), (*range(0, 5), 12), range(13, 16))
"""Where in the tree each of their tokens stands."""
_TOLERANCE = 1e-4
_COARSE_TOLERANCE = 5e-2
"""In bfloat16."""


def decoder_of(causal_lm: Any) -> Any:
    """The part of a causal language model that ends before the output head."""
    return getattr(causal_lm, causal_lm.base_model_prefix)


def switch_to_packed_rows(causal_lm: Any, compute_dtype: torch.dtype) -> bool:
    """Set an attention implementation that keeps to packed rows, if the model can; else leave it as it is and log why.

    The model's own attention over single rows is what the packed pass must reproduce.
    """
    from transformers import AttentionInterface
    from transformers.integrations.flash_attention import flash_attention_forward

    AttentionInterface.register(ROWS_ATTENTION, exchange_around(rows_attention))
    AttentionInterface.register(FLASH_ATTENTION, exchange_around(flash_attention_forward))
    before = causal_lm.config._attn_implementation
    reason = _reason_against(causal_lm)
    if reason is None:
        try:
            reason = _difference(causal_lm, _implementation(causal_lm, compute_dtype))
        except Exception as error:  # a model of any code may fail in any way; then it is not run in this one
            reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        causal_lm.set_attn_implementation(before)
        log.warning(
            "learner.packing: %s runs over padded rows instead: %s", type(causal_lm).__name__, reason.splitlines()[0]
        )
    return reason is None


def _implementation(causal_lm: Any, compute_dtype: torch.dtype) -> str:
    from transformers.utils import is_flash_attn_2_available

    on_gpu = next(causal_lm.parameters()).is_cuda
    if on_gpu and compute_dtype == torch.bfloat16 and is_flash_attn_2_available():
        return FLASH_ATTENTION
    return ROWS_ATTENTION


def _reason_against(causal_lm: Any) -> str | None:
    """What a short trial cannot show: layers whose mask depends on more than their arguments say."""
    config = causal_lm.config
    if config.sub_configs:
        return "it is made of several models"
    if not causal_lm._supports_flash_attn:
        return "transformers does not give it FlashAttention, so its layers' arguments may not say all of their masks"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"it has layers of other kinds ({', '.join(sorted(kinds)) or 'chunked attention'})"
    return None


@torch.no_grad()
def _difference(causal_lm: Any, implementation: str) -> str | None:
    """Compare packed rows with the same rows one by one. None: they agree."""
    causal_lm.set_attn_implementation("eager")  # the model's own code; `sdpa` ignores soft-caps
    decoder = decoder_of(causal_lm)
    device = next(causal_lm.parameters()).device
    total = sum(_PROBE_LENGTHS)
    ids = (torch.arange(total, device=device) % causal_lm.config.vocab_size)[None]
    alone = [
        decoder(
            input_ids=row, position_ids=torch.arange(row.shape[1], device=device)[None], use_cache=False
        ).last_hidden_state
        for row in ids.split(_PROBE_LENGTHS, 1)
    ]
    causal_lm.set_attn_implementation(implementation)
    layout = Layout.of_rows(_PROBE_LENGTHS)
    packed = decoder(
        input_ids=ids,
        position_ids=layout.positions(device),
        use_cache=False,
        **attention_arguments(implementation, layout, device),
    ).last_hidden_state
    expected = torch.cat(alone, 1).float()
    error = float((packed.float() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    allowed = _TOLERANCE if packed.dtype.itemsize >= 4 else _COARSE_TOLERANCE
    return None if error < allowed else f"packed rows differ from single ones (relative difference {error:.2g})"


def switch_to_shared_prompts(causal_lm: Any) -> bool:
    """Set an attention implementation that knows rows that share their beginnings, if the model can; else leave it as
    it is and log why.

    What it runs over is packed rows. Their values and gradients are what rows with shared prompts must reproduce.
    """
    before = causal_lm.config._attn_implementation
    reason = None
    if "mrope_section" in (getattr(causal_lm.config, "rope_parameters", None) or {}):
        reason = "its positions are not numbers of tokens alone (multimodal rotary embedding)"
    else:
        try:
            causal_lm.set_attn_implementation(ROWS_ATTENTION)
            reason = _difference_of_shared(causal_lm)
        except Exception as error:  # as above
            reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        causal_lm.set_attn_implementation(before)
        name = type(causal_lm).__name__
        log.warning("learner.share_prefix: %s computes every row's own prompt: %s", name, reason.splitlines()[0])
    return reason is None


def _difference_of_shared(causal_lm: Any) -> str | None:
    """Compare rows that share their prompt with rows that do not: last states, and their gradients by embeddings."""
    decoder = decoder_of(causal_lm)
    weight = causal_lm.get_input_embeddings().weight
    places = torch.tensor([place for row in _PROBE_TOKENS for place in row], device=weight.device)
    tokens = torch.arange(sum(_PROBE_TREE.lengths), device=weight.device) % len(weight)
    found = []
    for layout, index in ((_PROBE_TREE, slice(None)), (_PROBE_ROWS, places)):
        with torch.enable_grad():
            embeddings = weight[tokens].detach().requires_grad_()
            states = decoder(
                inputs_embeds=embeddings[index][None],
                position_ids=layout.positions(weight.device),
                use_cache=False,
                **attention_arguments(ROWS_ATTENTION, layout, weight.device),
            ).last_hidden_state[0]
            states = (states[places] if layout.shares else states).float()
            # Each by a weight of its own, so that no two may be confused.
            weights = torch.arange(states.numel(), device=states.device).cos().view_as(states)
            (gradient,) = torch.autograd.grad((states * weights).sum(), embeddings)
        found.append((states.detach(), gradient.float()))
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in zip(*found, strict=True)]
    allowed = _TOLERANCE if weight.dtype.itemsize >= 4 else _COARSE_TOLERANCE
    if max(errors) < allowed:
        return None
    return f"rows that share their prompt differ from others (relative difference {max(errors):.2g})"
