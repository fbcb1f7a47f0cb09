"""Keras's implementation of the same paper, beside ours: an independent oracle, where it is installed."""

import pytest
import torch

from models.renorm import BatchRenorm1d, BatchRenorm2d

# It computes r and d in float32, whatever the layer's type.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "shape"), [(BatchRenorm1d, (16, 3)), (BatchRenorm2d, (6, 3, 5, 4))], ids=["nc", "nchw"]
)
@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.1, 0.2), (3.0, 5.0)])
def test_steps_equal_kerass(monkeypatch, route, kind, shape, limits) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", minversion="3.14")
    if keras.backend.backend() != "torch":
        pytest.skip("keras was imported with another backend")
    torch.manual_seed(0)
    rmax, dmax = limits
    ours = kind(3, eps=1e-3, momentum=0.1, rmax=rmax, dmax=dmax, dtype=torch.float64)
    theirs = keras.layers.BatchNormalization(
        axis=1,
        epsilon=1e-3,
        momentum=0.9,  # of what was, for inference
        renorm=True,
        renorm_momentum=0.9,  # likewise, for r and d: ours has one set of statistics
        renorm_clipping={"rmin": 1 / rmax, "rmax": rmax, "dmax": dmax},
        dtype="float64",
    )
    theirs.build(shape)
    # It starts with a deviation of 1, we with a variance of 1 as BatchNorm does.
    for deviation in (theirs.renorm_stddev, theirs.moving_stddev):
        deviation.assign([(1 + 1e-3) ** 0.5] * 3)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        ours.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    theirs.gamma.assign([0.5, -1.0, 2.0])
    theirs.beta.assign([0.1, 0.2, -0.3])
    for step in range(5):
        x = torch.randn(shape, dtype=torch.float64) * (1 + step) + 0.5 * step
        dy = torch.randn(shape, dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = ours(a), theirs(b, training=True)
        gradients = torch.autograd.grad(y, [a, ours.weight, ours.bias], dy)
        wanted = torch.autograd.grad(expected, [b, theirs.gamma.value, theirs.beta.value], dy)
        for one, other in zip((y, *gradients), (expected, *wanted), strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
        for statistic, other in (
            (ours.running_mean, theirs.renorm_mean),
            (ours.running_mean, theirs.moving_mean),
            (ours.running_var, theirs.moving_variance),
            ((ours.running_var + ours.eps).sqrt(), theirs.renorm_stddev),
        ):
            torch.testing.assert_close(statistic, other.value.detach(), **CLOSE)
    torch.testing.assert_close(ours.eval()(x), theirs(x, training=False), **CLOSE)
