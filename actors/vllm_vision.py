"""Qwen2.5-VL in vLLM without torchvision, of which the CPU lock has no build: images, and no videos.

Two things want torchvision where nothing of it is used. vLLM takes the function `smart_resize` from the module of
transformers' torchvision image processor; the module of the Pillow one has the same function, and is given in its
place. And transformers' processor of this model insists on a video processor, which `ImagesOnlyProcessor` leaves out.

`vllm_compat.register` puts `ImagesOnly` in the place of vLLM's class, through vLLM's registry of models, only where
torchvision is missing. The model is the same; what differs is what prepares its input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

sys.modules.setdefault("transformers.models.qwen2_vl.image_processing_qwen2_vl", image_processing_pil_qwen2_vl)

from vllm.model_executor.models.qwen2_5_vl import (  # noqa: E402
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402


class ImagesOnlyProcessor(Qwen2_5_VLProcessor):
    """transformers loads the parts that the constructor names: no video processor."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class _Info(Qwen2_5_VLProcessingInfo):
    def get_hf_processor(self, **kwargs: object) -> Any:
        return self.ctx.get_hf_processor(ImagesOnlyProcessor, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor, info=_Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class ImagesOnly(Qwen2_5_VLForConditionalGeneration):
    """vLLM's own model with another input processor."""
