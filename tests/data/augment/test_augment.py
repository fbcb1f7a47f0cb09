import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from data.augment import PRESETS, make_augmentation
from data.augment.color import Color
from data.augment.geometry import Geometry
from data.counter_rng import derive, uniform
from models.errors import InputError


def images(count: int = 6, channels: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def random(count: int, numbers: int) -> torch.Tensor:
    return torch.from_numpy(uniform(derive(5, np.arange(count)), numbers))


@pytest.mark.parametrize("name", ["characters", "products", "faces"])
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_depend_on_an_images_key_alone(name: str, channels: int) -> None:
    augment = make_augmentation(name)
    assert augment is not None
    keys = derive(0, np.arange(6))
    batch = images(channels=channels)
    changed = augment(batch, keys)
    assert changed.shape == batch.shape
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.allclose(changed, batch / 255, atol=0.05)
    order = np.array([4, 1])
    assert torch.allclose(augment(batch[order], keys[order]), changed[order], atol=1e-6)
    assert not torch.allclose(augment(batch, keys + np.uint64(1)), changed)


def test_no_augmentation() -> None:
    assert make_augmentation("none") is None
    assert make_augmentation([]) is None
    with pytest.raises(InputError, match="augmentation 'birds' is none of none, characters"):
        make_augmentation("birds")  # type: ignore[arg-type]


def test_identity_geometry_changes_nothing() -> None:
    batch = images() / 255
    for still in (Geometry(), Geometry(reflect=True)):
        assert torch.allclose(still(batch, random(6, still.numbers)), batch, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (8, 20)])
def test_flip(shape: tuple[int, int]) -> None:
    batch = torch.rand(4, 1, *shape)
    flip = Geometry(flip=1.0)
    assert torch.allclose(flip(batch, random(4, flip.numbers)), batch.flip(-1), atol=1e-5)


def test_geometry_against_torch_affine_grid() -> None:
    """The grid is built by hand because torch's own is slow; both must agree."""
    batch = torch.rand(5, 2, 12, 12)
    geometry = Geometry(degrees=30, scale=(0.7, 1.4), stretch=0.3, shear=20, shift=0.2, flip=0.5)
    numbers = random(5, geometry.numbers)
    grid = torch.nn.functional.affine_grid(geometry._matrix(numbers), [5, 2, 12, 12], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        batch, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    assert torch.allclose(geometry(batch, numbers), expected, atol=1e-5)


def test_rotation_alone_keeps_sizes() -> None:
    """A matrix without shear and stretch is a rotation: its columns are orthonormal."""
    matrix = Geometry(degrees=45)._matrix(random(8, 7))[:, :, :2]
    assert torch.allclose(matrix.transpose(1, 2) @ matrix, torch.eye(2).expand(8, 2, 2), atol=1e-6)


def test_elastic_moves_pixels_but_not_far() -> None:
    ramp = torch.linspace(0, 1, 32).expand(3, 1, 32, 32)
    elastic = Geometry(elastic=0.05)
    moved = elastic(ramp, random(3, elastic.numbers)) - ramp
    assert 0.005 < moved.abs().max() < 0.1


def test_stroke_weight_against_max_pool() -> None:
    batch = torch.rand(3, 1, 9, 11)
    numbers = random(3, 14)
    numbers[:, 0] = torch.tensor([1.0, 0.0, 0.5])
    changed = Color(weight=1.0)(batch, numbers)
    pool = torch.nn.functional.max_pool2d
    assert torch.allclose(changed[0], pool(batch[0], 3, 1, 1))
    assert torch.allclose(changed[1], -pool(-batch[1], 3, 1, 1))
    assert torch.allclose(changed[2], batch[2])


def test_blur_against_average_pooling() -> None:
    batch = torch.rand(3, 2, 9, 11)
    padded = torch.nn.functional.pad(batch, (1, 1, 1, 1), mode="replicate")
    expected = torch.nn.functional.avg_pool2d(padded, 3, 1)
    assert torch.allclose(Color(blur=1.0)(batch, random(3, 14)), expected, atol=1e-6)


def test_color_options() -> None:
    batch = images() / 255
    numbers = random(6, 14)
    grey = Color(grey=1.0)(batch, numbers)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)
    assert torch.equal(Color(grey=1.0, saturation=0.5)(batch[:, :1], numbers), batch[:, :1])
    flat = torch.full_like(batch, 0.5)
    deviation = (Color(noise=0.2)(flat, numbers) - flat).flatten(1).std(1)
    assert torch.allclose(deviation, numbers[:, 7] * 0.2, rtol=0.15)
    erased = (Color(erase=1.0)(batch, numbers) != batch).float().mean((1, 2, 3))
    assert ((erased > 0) & (erased < 0.25)).all()


def test_torchvision_transforms_are_seeded_and_leave_the_global_generator() -> None:
    augment = make_augmentation(
        [v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomCrop(16, padding=2)]
    )
    assert augment is not None
    keys = derive(0, np.arange(6))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    changed = augment(images(), keys)
    assert torch.equal(torch.get_rng_state(), state)
    assert changed.dtype == torch.uint8
    torch.rand(1)
    assert torch.equal(augment(images(), keys), changed)
    assert torch.equal(augment(images()[2:3], keys[2:3]), changed[2:3])


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([v2.Resize(8)], r"Resize gives shape \(3, 8, 8\) instead of \(3, 16, 16\)"),
        ([v2.Normalize(MEAN, STD)], "Normalize fails"),
        ([TO_FLOAT, v2.Normalize(MEAN, STD)], "Normalize gives values from -2"),
        ([v2.ToDtype(torch.float32)], "ToDtype gives values from 0.00 to 255.00"),
        ([v2.ToDtype(torch.int64)], "ToDtype gives torch.int64"),
        ([v2.Grayscale()], r"Grayscale gives shape \(1, 16, 16\)"),
        ([v2.RandomHorizontalFlip(), v2.ToPILImage(), v2.RandomRotation(5)], "ToPILImage gives a Image"),
        ([v2.RandomRotation(45, expand=True)], "RandomRotation gives shape"),
    ],
)
def test_transforms_that_cannot_be_trained_on_are_named(transforms: list[nn.Module], message: str) -> None:
    augment = make_augmentation(transforms)
    assert augment is not None
    with pytest.raises(InputError, match=message) as error:
        augment(images(), derive(0, np.arange(6)))
    assert "\n" not in str(error.value)
    assert "Leave out normalization" in str(error.value)


@pytest.mark.parametrize(
    "transforms",
    [
        [TO_FLOAT, v2.GaussianNoise()],
        [v2.RandomResizedCrop(8), v2.Resize(16)],
        [TO_FLOAT, v2.RandomErasing(), v2.ToDtype(torch.uint8, scale=True)],
        [v2.ToPILImage(), v2.PILToTensor()],
    ],
)
def test_only_the_result_of_all_transforms_counts(transforms: list[nn.Module]) -> None:
    augment = make_augmentation(transforms)
    assert augment is not None
    assert augment(images(), derive(0, np.arange(6))).shape == (6, 3, 16, 16)


def test_every_preset_is_named_in_the_type() -> None:
    assert list(PRESETS) == ["none", "characters", "products", "faces", "photos"]
