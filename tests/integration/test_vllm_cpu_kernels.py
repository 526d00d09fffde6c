"""The normalisation that engines on CPUs use, against vLLM's own."""

from __future__ import annotations

import pytest
import torch

from funicular.actors import vllm_cpu_kernels

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM is not its CPU build")
    vllm_cpu_kernels.register()
    vllm_cpu_kernels.register()  # vLLM may load plugins more than once


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, 33])
def test_they_say_what_vllms_own_says(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    from vllm import ir

    x, residual = (torch.randn(tokens, 576).to(dtype) for _ in range(2))
    weight = torch.rand(576).to(dtype)
    normed = ir.ops.rms_norm.impls
    got = normed[vllm_cpu_kernels.PROVIDER].impl_fn(x, weight, 1e-5)
    torch.testing.assert_close(got, normed["native"].impl_fn(x, weight, 1e-5), rtol=tolerance, atol=tolerance)
    added = ir.ops.fused_add_rms_norm.impls
    expected = added["native"].impl_fn(x, residual, weight, 1e-5)
    got = added[vllm_cpu_kernels.PROVIDER].impl_fn(x.clone(), residual.clone(), weight, 1e-5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_what_they_cannot_take_goes_to_vllms_own() -> None:
    from vllm import ir

    x, weight = torch.randn(4, 64), torch.rand(64)
    takes = ir.ops.rms_norm.impls[vllm_cpu_kernels.PROVIDER].supports_args
    assert takes(x, weight, 1e-5)
    assert not takes(x[:, ::2], weight[::2], 1e-5)
    assert not takes(x, weight.bfloat16(), 1e-5)
    assert not takes(x, None, 1e-5)
    assert not takes(x, weight, 1e-5, 32)
    takes = ir.ops.fused_add_rms_norm.impls[vllm_cpu_kernels.PROVIDER].supports_args
    assert takes(x, x.clone(), weight, 1e-5)
    assert not takes(x, torch.randn(64, 4).T, weight, 1e-5)


def test_engines_choose_them() -> None:
    from vllm import ir
    from vllm.config.kernel import IrOpPriorityConfig

    from funicular.actors.config import GeneratorConfig
    from funicular.actors.engine import _on_cpu

    IrOpPriorityConfig.with_default(["native"], **_on_cpu(GeneratorConfig())["ir_op_priority"]).set_default()
    for name in vllm_cpu_kernels.PRIORITY:
        assert getattr(ir.ops, name).get_priority()[0] == vllm_cpu_kernels.PROVIDER
