"""The LightningDataModule of labelled images."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import nn

from data.augment import Preset, make_augmentation
from data.dataset import ImageDataset
from data.grouping import groups_by_column
from data.loader import EvaluationBatches, ImageLoader, spare_cores
from data.pixel_cache import CacheKind, open_cache
from data.sampling import PKBatchSampler, SmallClasses
from data.seen_classes import pack_classes
from data.sources import Source, open_source
from data.splits import Split, SplitSettings
from data.table import ImageTable
from models.errors import InputError
from models.preprocess import WHITE, ColorMode, Interpolation, Preprocess, ResizeMode

_log = logging.getLogger(__name__)


class ImageDataModule(LightningDataModule):
    """Images of classes: P×K batches for training, every image once for validation and testing.

    Batches are dicts of ``image`` (float32, B×C×H×W, normalized), ``label`` and ``index`` (int64, B); the
    index is the row in :attr:`table`.

    Args:
        source: A folder of class folders, a zip of them, a CSV or Parquet table, or the name of a set.
        image_size: Of the resized images, in pixels: the side of a square, or [height, width]; by default 64.
            For a model with pretrained weights, the command line takes size, mean, std and interpolation from
            them.
        mode: RGB, or L for grey; transparency is laid on white.
        resize_mode: How images get the input's aspect ratio: crop the centre, pad with white, stretch, or
            content_crop to the content on a plain background.
        mean: Per channel, of values in [0, 1]; by default ImageNet's for RGB and 0.5 for grey.
        std: Per channel.
        interpolation: Of the resize; by default bilinear.
        white_level: Value of white in 16-bit grey images; 4095 for 12-bit cameras.
        split: "classes" makes training, validation and test class-disjoint (the set's own split where it has
            one); "per_image" splits each class's images, for closed sets of classes only.
        val_fraction: Share of the training classes used for validation.
        val_images: Maximum number of validation images, in whole classes; by default all.
        test_fraction: Share of all classes for testing where the set has no split of its own.
        split_seed: Of the split; the same seed gives the same split on any machine.
        folds: Number of folds of a class-disjoint cross-validation, instead of the set's own split.
        fold: The fold to test on, from 0.
        classes_per_batch: P, classes in a training batch of each process; at most all classes.
        samples_per_class: K, images of each class in a training batch.
        batches_per_epoch: By default a pass over the training images.
        small_classes: For classes with fewer than K images: "repeat" images, "skip" the class, or "error".
        group_by: Column of the table with groups of confusable classes, such as "coarse" or "alphabet";
            classes of a group then follow each other.
        group_from_epoch: First epoch with groups; needs ``group_by`` or ``regroup``.
        regroup: Whether groups change during training, as the hard-class curriculum does.
        augmentation: A preset (none, photos, characters, products, faces), or a list of torchvision v2
            transforms.
        rotations_as_classes: Whether training images rotated by 90°, 180° and 270° form new classes.
        eval_batch_size: Images in a batch of validation, test and prediction.
        num_workers: Processes that read images; by default the number of cores less one, 8 at most.
        cache: Where decoded images are kept: memory, disk (also for later runs) or none.
        cache_gigabytes: Limit of that cache, for training and for evaluation images each.
        seed: Of batches and augmentation.

    Raises:
        InputError: A setting is unusable.
    """

    def __init__(
        self,
        # Without Path, jsonargparse would read a file of that name and take its content.
        source: str | Path | Source = "glyphs",
        image_size: int | list[int] | None = None,
        mode: str = "RGB",  # Preprocess checks it, with a clearer message than the parser's
        resize_mode: ResizeMode = "crop",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: Interpolation | None = None,
        white_level: int = WHITE,
        split: Literal["classes", "per_image"] = "classes",
        val_fraction: float = 0.1,
        val_images: int | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        classes_per_batch: int = 32,
        samples_per_class: int = 4,
        batches_per_epoch: int | None = None,
        small_classes: SmallClasses = "repeat",
        group_by: str | None = None,
        group_from_epoch: int = 0,
        regroup: bool = False,
        augmentation: Preset | list[nn.Module] = "none",
        rotations_as_classes: bool = False,
        eval_batch_size: int = 256,
        num_workers: int | None = None,
        cache: CacheKind = "memory",
        cache_gigabytes: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("val_images", val_images, 1),
            ("batches_per_epoch", batches_per_epoch, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("cache_gigabytes", cache_gigabytes, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"data: {name} is {value}; give at least {least}")
        self.source = open_source(source)
        self.preprocess = Preprocess(
            64 if image_size is None else image_size,
            cast("ColorMode", mode),
            resize_mode,
            tuple(mean or ()),
            tuple(std or ()),
            interpolation=interpolation or "bilinear",
            white_level=white_level,
        )
        if rotations_as_classes and self.preprocess.height != self.preprocess.width:
            raise InputError("rotations_as_classes turns images by 90°: give image_size one side, a square's")
        self.augment = make_augmentation(augmentation)
        self.split_settings = SplitSettings(split, val_fraction, test_fraction, split_seed, folds, fold)
        self.val_images = val_images
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.batches_per_epoch, self.small_classes = batches_per_epoch, small_classes
        self.group_by, self.group_from_epoch, self.regroup = group_by, group_from_epoch, regroup
        self.rotations_as_classes, self.eval_batch_size = rotations_as_classes, eval_batch_size
        self.num_workers = min(8, spare_cores()) if num_workers is None else num_workers
        self.cache, self.cache_bytes, self.seed = cache, int(cache_gigabytes * 2**30), seed
        self._train_loader: ImageLoader | None = None
        self._resume: dict[str, Any] | None = None
        self._loaders: list[ImageLoader] = []

    def __str__(self) -> str:
        # Lightning's own builds every loader, and fails for loaders other than torch's.
        return f"{type(self).__name__}({self.source})"

    @cached_property
    def table(self) -> ImageTable:
        """All images of the source."""
        return self.source.table()

    @cached_property
    def parts(self) -> Split:
        """The split of the images into training, validation and test."""
        return self.split_settings.apply(self.table)

    @property
    def split_hash(self) -> str:
        """SHA-256 of the split; see :class:`data.splits.Split`."""
        return self.parts.hash

    @cached_property
    def _train_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of the training part, and the training label of each of its images."""
        classes, labels = np.unique(self.table.labels[self.parts.rows("train")], return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"{self.table.roots[0]}: {len(classes)} training classes; at least two are needed"
            )
        return classes, labels.astype(np.int64)

    @cached_property
    def training_classes(self) -> str:
        """Digests of the training classes' names, for the bundle; see :mod:`data.seen_classes`."""
        return pack_classes(self.table.class_names[label] for label in self._train_labels[0])

    @property
    def num_classes(self) -> int:
        """Number of training classes, rotated copies included."""
        return len(self._train_labels[0]) * (4 if self.rotations_as_classes else 1)

    @property
    def class_names(self) -> list[str]:
        """Names of the training classes in the order of their training labels."""
        names = [self.table.class_names[c] for c in self._train_labels[0]]
        if not self.rotations_as_classes:
            return names
        return [f"{name} turned {turn}°" if turn else name for turn in (0, 90, 180, 270) for name in names]

    def prepare_data(self) -> None:
        """Download, draw and index in one process per machine; the others read the result from the cache."""
        self.source.table()

    def setup(self, stage: str | None = None) -> None:
        """Compute the split and try the augmentation, so that errors show before training.

        Raises:
            InputError: The split or the augmentation is unusable, or the images are not there.
        """
        self.table.require_files()
        _ = self.parts
        if stage in (None, "fit"):
            _ = self._train_labels
            if self.augment is not None:
                keys = np.arange(8, dtype=np.uint64)
                pixels = np.random.default_rng(0).integers(
                    0, 256, (len(keys), *self.preprocess.shape), np.uint8
                )
                self.augment(torch.from_numpy(pixels), keys)

    def train_dataloader(self) -> ImageLoader:
        """P×K batches, labels 0 … ``num_classes`` − 1."""
        rows = self.parts.rows("train")
        dataset = self._dataset(rows, self._train_labels[1], training=True)
        rank, world_size = self._processes()
        batches = PKBatchSampler(
            dataset.labels,
            self.classes_per_batch,
            self.samples_per_class,
            self.batches_per_epoch,
            self.seed,
            small_classes=self.small_classes,
            groups=self._groups(),
            group_from_epoch=self.group_from_epoch,
            regroup=self.regroup,
            rank=rank,
            world_size=world_size,
            class_names=self.class_names,
        )
        self._train_loader = self._loader(dataset, batches)
        if self._resume is not None:
            self._train_loader.load_state_dict(self._resume)
            self._resume = None
        return self._train_loader

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        """Every validation image once, with the table's labels; an empty list where there are none."""
        rows = self.validation_rows
        return self._evaluation(rows) if len(rows) else []

    @cached_property
    def validation_rows(self) -> NDArray[np.int64]:
        """Rows of :attr:`table` used for validation, int64, ascending: classes of two images or more."""
        rows = self.parts.rows("val")
        classes, images = np.unique(self.table.labels[rows], return_counts=True)
        alone = classes[images == 1]
        if len(alone):
            _log.warning(
                "%s: %d of %d validation classes have one image, which nothing matches: they are left out",
                self.table.roots[0],
                len(alone),
                len(classes),
            )
            rows = rows[~np.isin(self.table.labels[rows], alone)]
        if self.val_images is None or len(rows) <= self.val_images:
            return rows
        classes, images = np.unique(self.table.labels[rows], return_counts=True)
        order = np.random.default_rng(self.split_settings.seed).permutation(len(classes))
        # At least two classes: retrieval within one class is trivial.
        kept = max(2, int(np.searchsorted(images[order].cumsum(), self.val_images, side="right")))
        return rows[np.isin(self.table.labels[rows], classes[order[:kept]])]

    def test_dataloader(self) -> ImageLoader:
        """Every test image once, with the table's labels.

        Raises:
            InputError: The split has no test images.
        """
        rows = self.parts.rows("test")
        if not len(rows):
            raise InputError(f"{self.table.roots[0]}: the split has no test images; set test_fraction")
        return self._evaluation(rows)

    def predict_dataloader(self) -> ImageLoader:
        """Every image of the source once, with the table's labels."""
        return self._evaluation(np.arange(len(self.table)))

    def training_images(self, count: int) -> ImageLoader:
        """Up to ``count`` training images, evenly spaced, each once and without augmentation."""
        rows = self.parts.rows("train")
        return self._evaluation(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)])

    @property
    def batch_size(self) -> int:
        """The setting that Lightning's batch-size finder changes by default; it does not exist here.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "batches are P×K, so there is no batch_size to scale: name batch_arg_name='classes_per_batch', "
            "or 'eval_batch_size' for validation, test and prediction"
        )

    @property
    def corrupt(self) -> dict[str, str]:
        """Reasons why images could not be read so far, by the image's name."""
        return {name: reason for loader in self._loaders for name, reason in loader.corrupt.items()}

    def state_dict(self) -> dict[str, Any]:
        """The split's hash and the position in the training batches, for the checkpoint.

        Lightning saves a loader's state too, but does not restore it where the schedule asks for the number
        of steps, and so creates the loader, before the checkpoint is read.
        """
        loader = self._train_loader
        return {"split_hash": self.split_hash, "batches": loader.state_dict() if loader else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the next batch; refuse to resume on another split, and warn when evaluating on one.

        Raises:
            InputError: The checkpoint was trained on another split.
        """
        self._resume = state_dict.get("batches")
        if state_dict["split_hash"] == self.split_hash:
            return
        message = (
            f"the checkpoint was trained on split {state_dict['split_hash'][:12]}, the data have split "
            f"{self.split_hash[:12]}"
        )
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            raise InputError(f"{message}: resume on the same data and split settings, or start a new run")
        _log.warning("%s: classes seen in training may be among the tested ones", message)

    def _groups(self) -> NDArray[np.int64] | None:
        if self.group_by is None:
            return None
        groups = groups_by_column(self.table, self.parts.rows("train"), self.group_by)
        return np.tile(groups, 4) if self.rotations_as_classes else groups

    def _dataset(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], *, training: bool = False
    ) -> ImageDataset:
        return ImageDataset(
            self.table,
            rows,
            labels,
            self.preprocess,
            cache=open_cache(self.cache, self.table, rows, self.preprocess, self.cache_bytes),
            augment=self.augment if training else None,
            rotations=training and self.rotations_as_classes,
            replace_corrupt=training,
        )

    def _evaluation(self, rows: NDArray[np.int64]) -> ImageLoader:
        dataset = self._dataset(rows, self.table.labels[rows])
        return self._loader(dataset, EvaluationBatches(len(rows), self.eval_batch_size, *self._processes()))

    def _loader(self, dataset: ImageDataset, batches: PKBatchSampler | EvaluationBatches) -> ImageLoader:
        loader = ImageLoader(
            dataset,
            batches,
            seed=self.seed,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            same_batches=self.trainer is not None and self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        )
        self._loaders.append(loader)
        return loader

    def _processes(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
