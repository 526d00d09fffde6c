"""The output head's logits in tiles of tokens x vocabulary: sizes of tiles, products, and what a model does to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from funicular.actors.tiling import CPU_TILING, GPU_TILING, Tiling


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """What a model does to its output head's products x: softcap * tanh(scale * x / softcap), or scale * x."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadProducts:
    """How logits are made of hidden states, tile by tile."""

    temperature: float
    scale: float
    softcap: float | None
    product_dtype: torch.dtype
    tiling: Tiling

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        logit_map: LogitMap | None,
        temperature: float,
        product_dtype: torch.dtype | None,
        tiling: Tiling | None,
    ) -> HeadProducts:
        """With the defaults for these hidden states: their type, and the device's tiles."""
        logit_map = logit_map or LogitMap()
        return cls(
            temperature=temperature,
            scale=logit_map.scale,
            softcap=logit_map.softcap,
            product_dtype=product_dtype or hidden.dtype,
            tiling=tiling or (GPU_TILING if hidden.is_cuda else CPU_TILING),
        )

    @property
    def factor(self) -> float:
        """Gradient of a logit over temperature by its product, where there is no soft-cap or it does not bind."""
        return self.scale / self.temperature

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.float64 if self.product_dtype == torch.float64 else torch.float32

    def has_kernels(self, raw: torch.Tensor) -> bool:
        """Whether `logit_kernels.py` can take these products: on a GPU, without a soft-cap."""
        return raw.is_cuda and raw.dtype == torch.float32 and self.softcap is None

    def keeps(self, tokens: int, vocabulary: int) -> bool:
        """Whether logits of all tokens are small enough to be kept."""
        return tokens * vocabulary * self.sum_dtype.itemsize <= self.tiling.kept_bytes

    def vocabulary_tiles(self, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, weight.shape[0], self.tiling.vocabulary):
            words = slice(start, min(start + self.tiling.vocabulary, weight.shape[0]))
            yield words, weight[words].to(self.product_dtype)

    def token_tiles(self, tokens: int) -> Iterator[slice]:
        for start in range(0, tokens, self.tiling.tokens):
            yield slice(start, min(start + self.tiling.tokens, tokens))

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b, in the type of sums.

        Sums over the vocabulary are of such products, tile by tile. `addmm` with the sum so far is another thing on a
        CPU: for a few tokens it adds word after word to it, and small terms are lost in 49,152 of them (SmolLM2-135M:
        relative error 6e-5 instead of 2e-6 in the hidden states' gradient).
        """
        if a.dtype == self.sum_dtype:
            return a @ b
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=self.sum_dtype)
        # No CPU kernel writes float32: it sums in float32 and rounds each tile's product once. Measured against float64
        # for 24 to 48 tiles, the gradient's error and its size are those of one product without tiles.
        return (a @ b).to(self.sum_dtype)

    def products(
        self,
        inputs: torch.Tensor,
        weight_tile: torch.Tensor,
        bias: torch.Tensor | None,
        words: slice,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One tile of what the output head gives, before the model's map; in `out`, if there is one."""
        if out is None:
            out = self.product(inputs, weight_tile.T)
        elif inputs.dtype == out.dtype:
            torch.mm(inputs, weight_tile.T, out=out)
        else:
            out.copy_(self.product(inputs, weight_tile.T))
        return out if bias is None else out.add_(bias[words])

    def add_product_(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """total += a @ b, for sums over tokens."""
        if a.dtype == total.dtype:
            total.addmm_(a, b)
        elif a.is_cuda:
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
        else:
            total.add_(self.product(a, b))

    def map_(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Products to logits over temperature, in place; and tanh, where there is a soft-cap."""
        if self.softcap is None:
            return (raw if self.factor == 1.0 else raw.mul_(self.factor)), None
        tanh = raw.mul_(self.scale / self.softcap).tanh_()
        return tanh * (self.softcap / self.temperature), tanh

    def logits(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `map_`, but products stay; where there is nothing to do, they are the logits."""
        return self.map_(raw if self.softcap is None and self.factor == 1.0 else raw.clone())
