"""The CUDA route: against the CPU's with its kernels' definitions in their place, and on a device."""

import copy

import pytest
import torch
from torch import Tensor

from models.renorm import BatchRenorm2d
from models.renorm.cpu import CPU
from models.renorm.cuda import CUDA


def along(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.float()
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()


def elemt(x: Tensor, weight: Tensor | None, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    scale = invstd if weight is None else invstd * weight
    return ((x.float() - along(mean)) * along(scale) + along(bias)).to(x.dtype)


def reduce(
    dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *wanted: bool
) -> tuple[Tensor, ...]:
    total = dy.float().sum((0, 2, 3))
    product = (dy.float() * (x.float() - along(mean))).sum((0, 2, 3))
    return total, product, (product * invstd).to(weight.dtype), total.to(weight.dtype)


def backward_elemt(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    total: Tensor,
    product: Tensor,
    count: Tensor,
) -> Tensor:
    n = count.sum()
    dx = dy.float() - along(total / n) - (x.float() - along(mean)) * along(invstd**2 * product / n)
    return (dx * along(invstd * weight)).to(dy.dtype)


def test_the_kernels_are_given_what_they_expect(monkeypatch) -> None:
    torch.manual_seed(0)
    for name, kernel in {
        "batch_norm_stats": stats,
        "batch_norm_elemt": elemt,
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": backward_elemt,
    }.items():
        monkeypatch.setattr(torch, name, kernel)
    x, dy = torch.randn(6, 3, 4, 4) + 1, torch.randn(6, 3, 4, 4)
    scale, b = torch.randn(3), torch.randn(3)
    ours, theirs = CUDA.batch_statistics(x, 1e-3), CPU.batch_statistics(x, 1e-3)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.std, theirs.std)
    mean, invstd = ours.mean, ours.std.reciprocal()
    torch.testing.assert_close(CUDA.normalize(x, scale, b, ours), CPU.normalize(x, scale, b, theirs))
    sums = CUDA.gradient_sums(dy, x, mean, invstd)
    torch.testing.assert_close(sums, CPU.gradient_sums(dy, x, mean, invstd))
    projection, total = sums
    dx = [k.input_gradient(dy, x, scale, mean, invstd, total, projection, 96) for k in (CUDA, CPU)]
    torch.testing.assert_close(*dx, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("moving", ["batch", "moving"])
def test_the_device_agrees_with_the_cpu(dtype, layout, moving) -> None:
    torch.manual_seed(1)
    wide = torch.promote_types(dtype, torch.float32)
    layer = BatchRenorm2d(5, rmax=1.2, dmax=0.3, gradient_statistics=moving, dtype=wide)
    other = copy.deepcopy(layer).cuda()
    bound = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)
    for _ in range(3):
        x = (torch.randn(8, 5, 6, 6, dtype=torch.float64) + 1).to(dtype).contiguous(memory_format=layout)
        dy = torch.randn(8, 5, 6, 6, dtype=torch.float64).to(dtype)
        a, b = x.clone().requires_grad_(), x.cuda().requires_grad_()
        y, device_y = layer(a), other(b)
        assert device_y.dtype == dtype
        assert device_y.stride() == y.stride()
        y.backward(dy)
        device_y.backward(dy.cuda())
        for p, q in ((y, device_y), (a.grad, b.grad), (layer.running_var, other.running_var)):
            torch.testing.assert_close(q.cpu(), p, rtol=bound, atol=bound)
