"""The CUDA route: against the CPU's with its kernels' definitions in their place, and on a device."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.renorm import BatchRenorm2d


def along(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.float()
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + eps).rsqrt()


def elemt(x: Tensor, weight: Tensor | None, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    scale = invstd if weight is None else invstd * weight
    return ((x.float() - along(mean)) * along(scale) + along(bias)).to(x.dtype)


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


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_elemt": elemt,
    "batch_norm_backward_elemt": backward_elemt,
}


class Launches(TorchDispatchMode):
    """Counts the operations that would each launch a kernel on a device, a native kernel as one."""

    FREE = ("empty", "view", "detach", "alias")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not self.inside and not any(word in name for word in self.FREE):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def kernel(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.names.append(name)
            self.inside = True
            try:
                return work(*args)
            finally:
                self.inside = False

        return run


class OnADevice(Tensor):
    """Says that it is on a device, so that the layer takes that way."""

    is_cuda, is_cpu = True, False


def on_a_device(x: Tensor) -> Tensor:
    return x.as_subclass(OnADevice)


@pytest.mark.parametrize(("moving", "forward", "backward"), [("batch", 24, 6), ("moving", 24, 28)])
def test_a_step_launches_few_kernels_and_gives_them_what_they_expect(
    monkeypatch, moving, forward, backward
) -> None:
    """Small launches are what the layer costs above BatchNorm on a device; the results stay the CPU's."""
    torch.manual_seed(2)
    counter = Launches()
    ours = BatchRenorm2d(3, rmax=1.1, dmax=0.1, gradient_statistics=moving)
    expected = copy.deepcopy(ours)
    for name, kernel in KERNELS.items():
        monkeypatch.setattr(torch, name, counter.kernel(name, kernel))
    for _ in range(2):
        x, dy = torch.randn(6, 3, 4, 4) + 1, torch.randn(6, 3, 4, 4)
        a, b = x.clone().requires_grad_(), on_a_device(x.clone()).requires_grad_()
        expected(a).backward(dy)
        counter.names.clear()
        with counter:
            y = ours(b)
        assert len(counter.names) <= forward, counter.names
        counter.names.clear()
        with counter:
            (dx,) = torch.autograd.grad(y, b, dy, retain_graph=True)
            assert len(counter.names) <= backward, counter.names
        torch.testing.assert_close(dx.as_subclass(Tensor), a.grad, rtol=1e-4, atol=1e-5)
        for p, q in zip(ours.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(p, q)


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
