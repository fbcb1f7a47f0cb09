"""Depthwise convolutions under a processor's bfloat16 autocast."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.fusion import keep_float32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(16, 4, 3, groups=2),
    )


def types_inside(net: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type in which each convolution multiplies under autocast; all give bfloat16."""
    seen: list[torch.dtype] = []
    conv2d = torch.nn.functional.conv2d

    def watched(x: Tensor, *arguments: object) -> Tensor:
        out: Tensor = conv2d(x, *arguments)  # type: ignore[call-overload]
        seen.append(out.dtype)
        return out

    with monkeypatch.context() as patched, torch.autocast("cpu", torch.bfloat16):
        patched.setattr(torch.nn.functional, "conv2d", watched)
        out = net(torch.randn(2, 3, 8, 8))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    return seen


def test_they_alone_run_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    half, full = torch.bfloat16, torch.float32
    plain, kept = network(), network()
    assert types_inside(plain, monkeypatch) == [half, half, half, half]
    keep_float32(kept)
    assert types_inside(kept, monkeypatch) == [half, full, full, half]


def test_without_autocast_nothing_changes() -> None:
    images, plain, kept = torch.randn(2, 3, 8, 8, dtype=torch.float64), network().double(), network().double()
    keep_float32(kept)
    keep_float32(kept)  # a second fit of the same model
    assert torch.equal(plain(images), kept(images))
    assert list(plain.state_dict()) == list(kept.state_dict())
    traced = torch.export.export(kept, (images,)).module()
    assert torch.equal(traced(images), plain(images))


def test_a_copy_computes_with_its_own_weights() -> None:
    kept = network()
    keep_float32(kept)
    copied = copy.deepcopy(kept)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.count_nonzero(copied(torch.randn(2, 3, 8, 8))) == 0
    assert torch.count_nonzero(kept(torch.randn(2, 3, 8, 8))) > 0
