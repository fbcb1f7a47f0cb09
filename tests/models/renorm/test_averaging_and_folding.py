"""Averages of weights take the deviation, and inference can do without the layer."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    RenormAveragedModel,
    fold_batch_renorm,
)


@pytest.mark.parametrize("function", [None, get_ema_multi_avg_fn(0.9)])
def test_the_deviation_is_averaged(function) -> None:
    torch.manual_seed(0)
    layer = BatchRenorm1d(3, momentum=1.0)
    average = RenormAveragedModel(layer, multi_avg_fn=function, use_buffers=True)
    wrong = AveragedModel(layer, multi_avg_fn=function, use_buffers=True)
    deviations, means = [], []
    for step in range(4):
        layer(torch.randn(16, 3) * (1 + 3 * step))
        before = copy.deepcopy(layer.state_dict())
        average.update_parameters(layer)
        wrong.update_parameters(layer)
        assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
        deviations.append((layer.running_var + layer.eps).sqrt())
        means.append(layer.running_mean.clone())
    expected, mean = deviations[0], means[0]
    for n in range(1, 4):
        weight = 1 / (n + 1) if function is None else 0.1
        expected = expected + weight * (deviations[n] - expected)
        mean = mean + weight * (means[n] - mean)
    torch.testing.assert_close((average.module.running_var + layer.eps).sqrt(), expected)
    torch.testing.assert_close(average.module.running_mean, mean)
    assert not torch.allclose(wrong.module.running_var, average.module.running_var)


class Network(nn.Module):
    """Two pairs that fold, and three layers that cannot: shared, after an activation, after a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchRenorm2d(4), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.up_norm = BatchRenorm2d(4)
        self.activated = BatchRenorm2d(4)
        self.branch, self.branch_norm = nn.Conv2d(4, 4, 1), BatchRenorm2d(4)
        self.shared = BatchRenorm2d(4)
        self.head = nn.Sequential(nn.Linear(4, 5), BatchRenorm1d(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up_norm(self.up(self.first(x)))
        x = self.activated(x.relu())
        branch = self.branch(x)
        x = self.branch_norm(branch) + branch
        x = self.shared(self.shared(x))
        return self.head(x.mean((2, 3)))


def test_folding_keeps_the_outputs() -> None:
    torch.manual_seed(1)
    network = Network()
    for _ in range(3):
        network(torch.randn(4, 3, 6, 6))
    with pytest.raises(ValueError, match="eval"):
        fold_batch_renorm(network)
    network.eval()
    x = torch.randn(2, 3, 6, 6)
    expected = network(x)
    folded = fold_batch_renorm(network)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(x), expected)
    left = {name for name, m in folded.named_modules() if isinstance(m, BatchRenorm1d | BatchRenorm2d)}
    assert left == {"activated", "branch_norm", "shared"}


def test_folding_into_other_convolutions() -> None:
    torch.manual_seed(2)
    for convolution, norm, shape in (
        (nn.Conv1d(3, 4, 3), BatchRenorm1d(4), (4, 3, 8)),
        (nn.Conv3d(3, 4, 2), BatchRenorm3d(4), (4, 3, 4, 4, 4)),
    ):
        network = nn.Sequential(convolution, norm)
        network(torch.randn(shape))
        network.eval()
        x = torch.randn(shape)
        folded = fold_batch_renorm(network)
        assert len(list(folded.children())) == 1
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


def test_folding_leaves_the_networks_of_other_threads_alone() -> None:
    """torch.fx patches every module's call while it traces; a server embeds while it loads another model."""
    served, image = nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4)).eval(), torch.randn(2, 3)
    answers: list[Tensor] = []

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 3), BatchRenorm1d(3))

        def forward(self, x: Tensor) -> Tensor:
            request = threading.Thread(target=lambda: answers.append(served(image)))
            request.start()
            request.join()
            return self.layers(x)

    network = Traced().eval()
    folded = fold_batch_renorm(network)
    assert torch.allclose(folded(image), network.layers(image), atol=1e-6)
    assert len(answers) == 1
    assert torch.equal(answers[0], served(image))
