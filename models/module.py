"""The LightningModule: triplets (or any metric-learning loss) on an embedding network."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from pytorch_metric_learning.losses import TripletMarginLoss
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from models import resuming
from models.backbones import input_settings
from models.callbacks.random_state import RandomState
from models.callbacks.renorm import RenormScheduleCallback
from models.callbacks.retrieval import RetrievalEvaluation
from models.errors import InputError
from models.fusion import keep_float32
from models.gathering import gather_rows, gather_with_gradient, world_size
from models.losses import (
    FaceNetTripletLoss,
    ResumableMemory,
    build,
    check_roles,
    embedding_variance,
    plain_spec,
    triplet_statistics,
)
from models.mining import SemiHardMiner
from models.network import Architecture, EmbeddingNetwork
from models.normalization import Normalization, freeze_layers
from models.preprocess import Preprocess
from models.renamed import tell
from models.renorm import PAPER_DMAX, PAPER_RMAX, BatchRenorm, native
from models.schedules import WarmupCosine
from models.tta import View, as_views

# In the order of a tuple.
ENTRIES = ("image", "label", "index")

_log = logging.getLogger(__name__)

# Schedulers that count optimizer steps; torch's others count epochs.
_PER_STEP = (WarmupCosine, OneCycleLR, CyclicLR)


class MetricLearner(LightningModule):
    """Train an embedding network so that images of one class lie close together.

    Batches are mappings of "image" float32 (B, C, H, W), "label" int64 (B,) and "index" int64 (B,), the
    image's number in its data set; or tuples of these in this order. Only evaluation uses the index, to count
    an image once that several processes saw; without it, images are numbered as they come.

    The defaults are FaceNet's: semi-hard triplets and a margin of 0.2 in squared distance. Batch
    Renormalization follows RenormScheduleCallback's schedule, unless the Trainer has such a callback or
    normalization_args hold warmup_steps. An rmax or dmax in normalization_args is the schedule's final limit;
    a momentum there is constant. With pretrained weights and no normalization_args the statistics are frozen.

    Args:
        backbone: conv4, resnet10, inception_resnet_v1, a torchvision model such as resnet50, timm.<name>, or
            the class path of any nn.Module (with trust_code).
        backbone_args: Keyword arguments of the backbone's constructor.
        normalization: Replaces the backbone's batch normalization.
        normalization_args: Its arguments, for example {rmax: 3}, which gives the paper's limits.
        in_channels: Channels of the images, 1 or 3; the command line links it from the data.
        embedding_dim: Length of an embedding.
        head: "linear", or "none" where the backbone's output is the embedding.
        tta: Test-time augmentation: in evaluation an embedding is the mean over the image and these views of
            it, for example [{degrees: 12}, {degrees: -12}] or, for faces, [{mirror: true}].
        weights: Pretrained weights of the backbone: packaged (for timm.tf_efficientnet_lite0), a local file,
            DEFAULT, or a name that timm or torchvision knows for the backbone.
        trust_code: Allow a backbone whose class lies outside models.backbones, torchvision.models and timm.
        num_classes: Number of training classes; the command line links it from the data. Only proxy and
            classification losses need it.
        loss: class_path and init_args of a loss of pytorch-metric-learning or of your own, or the loss
            itself; by default FaceNet's triplet loss. num_classes and embedding_size are filled in where the
            loss has such parameters.
        miner: class_path and init_args of a miner, or the miner itself; by default SemiHardMiner for triplet
            losses and none for others.
        memory_size: Number of earlier embeddings that the loss also sees (cross-batch memory); 0 for none.
        gather: Whether triplets span the processes of a distributed run.
        optimizer: Called with the parameters, or with groups of them where learning rates differ.
        lr: Peak learning rate, instead of the optimizer's; Lightning's Tuner.lr_find sets it.
        backbone_lr: Peak learning rate of the backbone; by default that of the head.
        proxy_lr: Peak learning rate of the loss's parameters (proxies, class weights); by default the head's.
        freeze_backbone_steps: Number of first steps in which only head and proxies train.
        frozen_layers: Parts of the backbone that never train, for example [conv_stem, blocks.0]: the first
            layers are the most expensive and the most general.
        scheduler: Called with the optimizer; by default a warm-up over the first 5% of the run, then a cosine
            down to 1% of the learning rate. A resumed run repeats the scheduler's steps so far.
        scheduler_interval: Step it after every optimizer "step" or after every "epoch"; by default steps for
            WarmupCosine, OneCycleLR and CyclicLR, epochs for all others.
        scheduler_monitor: Metric that ReduceLROnPlateau follows; by default the scheduler's own `monitor`, or
            val/map@r where its mode is "max" and train/loss where it is "min".
        ks: Depths k of recall@k in validation.
        views: The former name of tta.

    Attributes:
        last_batch: images and embeddings (without gradients) of the latest training batch of this process.

    Raises:
        InputError: an argument names something unknown, or two arguments contradict each other.
    """

    def __init__(
        self,
        backbone: str = "conv4",
        backbone_args: dict[str, Any] | None = None,
        normalization: Normalization = "renorm",
        normalization_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        embedding_dim: int = 128,
        head: Literal["linear", "none"] = "linear",
        tta: list[View] | None = None,
        weights: str | None = None,
        trust_code: bool = False,
        num_classes: int | None = None,
        loss: dict[str, Any] | nn.Module | None = None,
        miner: dict[str, Any] | nn.Module | None = None,
        memory_size: int = 0,
        gather: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-4),
        lr: float | None = None,
        backbone_lr: float | None = None,
        proxy_lr: float | None = None,
        freeze_backbone_steps: int = 0,
        frozen_layers: list[str] | None = None,
        scheduler: LRSchedulerCallable = WarmupCosine,
        scheduler_interval: Literal["step", "epoch"] | None = None,
        scheduler_monitor: str | None = None,
        ks: list[int] | None = None,
        views: list[View] | None = None,
    ) -> None:
        super().__init__()
        # torch checks an optimizer's own rate, but not those of groups of parameters.
        for name, value in (
            ("lr", lr),
            ("backbone_lr", backbone_lr),
            ("proxy_lr", proxy_lr),
            ("memory_size", memory_size),
            ("freeze_backbone_steps", freeze_backbone_steps),
        ):
            if value is not None and not value >= 0:
                raise InputError(f"{name} is {value}; give 0 or more")
        if views:
            tell("model.views", "model.tta")
        if weights is not None and normalization in ("renorm", "sync_renorm") and not normalization_args:
            # New statistics harm a pretrained backbone more than training improves it (docs/evidence.md).
            normalization_args = {"frozen": True}
        self.architecture = Architecture(
            backbone=backbone,
            backbone_args=dict(backbone_args or {}),
            normalization=normalization,
            normalization_args=dict(normalization_args or {}),
            in_channels=in_channels,
            embedding_dim=embedding_dim,
            head=head,
            tta=as_views(tta or views or ()),
        )
        # Plain values only: a checkpoint then loads without running code or downloading weights.
        loss, miner = plain_spec(loss), plain_spec(miner)
        self.save_hyperparameters(
            {
                **self.architecture.to_dict(),
                "trust_code": trust_code,
                "num_classes": num_classes,
                "loss": None if isinstance(loss, nn.Module) else loss,
                "miner": None if isinstance(miner, nn.Module) else miner,
                "memory_size": memory_size,
                "gather": gather,
                "ks": ks,
            }
        )
        self.network = EmbeddingNetwork(self.architecture, weights, trust_code=trust_code)
        self.weights = weights
        self.num_classes = num_classes
        self.gather = gather
        self.make_optimizer = optimizer
        self.lr, self.backbone_lr, self.proxy_lr = lr, backbone_lr, proxy_lr
        self.freeze_backbone_steps = freeze_backbone_steps
        freeze_layers(self.network.backbone, frozen_layers or ())
        self.make_scheduler = scheduler
        self.scheduler_interval, self.scheduler_monitor = scheduler_interval, scheduler_monitor
        sizes = {
            "num_classes": num_classes,
            "embedding_size": embedding_dim,
            "descriptors_dim": embedding_dim,  # P2SGradLoss's name for it
        }
        self.loss: nn.Module = build(loss, sizes) or FaceNetTripletLoss()
        is_triplet = isinstance(self.loss, TripletMarginLoss)
        self.miner = build(miner) or (SemiHardMiner() if is_triplet else None)
        check_roles(self.loss, self.miner)
        self.margin = float(getattr(self.loss, "margin", 0.0)) if is_triplet else 0.0
        self.memory = (
            ResumableMemory(self.loss, embedding_dim, memory_size, self.miner) if memory_size else None
        )
        self.last_batch: tuple[Tensor, Tensor] | None = None
        self._retrieval = RetrievalEvaluation(ks or (1, 2, 4, 8))
        self._counted = 0
        self._checkpoint: dict[str, Any] | None = None

    @property
    def backbone(self) -> nn.Module:
        """The network before the head, where Lightning's BackboneFinetuning looks for it."""
        return self.network.backbone

    @property
    def validated(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Embeddings, labels and indices of the latest validation or test, of all processes."""
        return self._retrieval.evaluated

    def forward(self, images: Tensor) -> Tensor:
        """Embed preprocessed images (B, C, H, W) as unit vectors (B, embedding_dim)."""
        embeddings: Tensor = self.network(images)
        return embeddings

    def without_tta(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) as in training, with the trained head and no test-time augmentation."""
        return self.network.without_tta(images)

    def compute_loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over the global batch, in float32 (or wider) even under autocast.

        Args:
            embeddings: (B, embedding_dim) of this process.
            labels: int64 (B,) of this process.

        Returns:
            The loss, a scalar that is the same in every process, and what to log beside it.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.gather:
                embeddings, labels = gather_with_gradient(embeddings), gather_rows(labels)
            watched = {"embedding_variance": embedding_variance(embeddings)}
            if self.memory is not None:
                return self.memory(embeddings, labels), watched
            mined = self.miner(embeddings, labels) if self.miner is not None else None
            if mined is not None and len(mined) == 3:
                watched |= triplet_statistics(embeddings.detach(), mined, self.margin)
            loss: Tensor = self.loss(embeddings, labels, mined)
        return loss, watched

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one P×K batch."""
        del batch_idx
        entries = self._entries(batch)
        images, labels = entries["image"], entries["label"]
        embeddings = self.network(images)
        self.last_batch = (images, embeddings.detach())
        loss, watched = self.compute_loss(embeddings, labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        # Logging costs as much as a layer of a small network, so the rest is logged every few steps.
        if (self.global_step + 1) % max(1, min(10, getattr(self.trainer, "log_every_n_steps", 10))) == 0:
            self.log_dict({f"train/{name}": value for name, value in watched.items()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep a batch's embeddings for the end of the epoch."""
        entries = self._numbered(self._entries(batch), first=batch_idx == dataloader_idx == 0)
        self._retrieval.keep({**entries, "embedding": self.network(entries["image"])})

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same as in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The batch with "embedding", (B, embedding_dim), instead of images; images alone are a batch too."""
        entries = self._entries((batch,) if isinstance(batch, Tensor) else batch, ("image",))
        entries = self._numbered(entries, first=batch_idx == dataloader_idx == 0)
        embedded = {"embedding": self.network(entries["image"])}
        return embedded | {key: value for key, value in entries.items() if key != "image"}

    def _entries(self, batch: Any, needed: tuple[str, ...] = ("image", "label")) -> dict[str, Any]:
        """A batch's entries by name, checked."""
        if isinstance(batch, tuple | list) and len(batch) <= len(ENTRIES):
            batch = dict(zip(ENTRIES, batch, strict=False))
        if not isinstance(batch, Mapping) or any(name not in batch for name in needed):
            found = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise InputError(
                f"the data give batches with {found}: give mappings of image and label, or tuples of them"
            )
        images, labels = batch["image"], batch.get("label")
        channels = self.architecture.in_channels
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
            raise InputError(f"images are {_kind(images)}: the model takes tensors (B, {channels}, H, W)")
        if not images.is_floating_point():
            raise InputError(
                f"images are {images.dtype}: convert and normalize them, as ToDtype and Normalize do"
            )
        if "label" in needed and (
            not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != images.shape[:1]
        ):
            raise InputError(f"labels are {_kind(labels)}: give one class number an image, int64 (B,)")
        return dict(batch)

    def _numbered(self, entries: dict[str, Any], first: bool) -> dict[str, Any]:
        """Entries with an index; where it is missing, each process numbers its images as they come."""
        if first:
            self._counted = 0
        count = torch.arange(self._counted, self._counted + len(entries["image"]), device=self.device)
        self._counted += len(count)
        return {"index": count * world_size() + self.global_rank} | entries

    def on_validation_epoch_end(self) -> None:
        """Log exact retrieval metrics over the whole validation set."""
        self._retrieval.report(self.trainer, self, "val")

    def on_test_epoch_end(self) -> None:
        """Log exact retrieval metrics over the whole test set."""
        self._retrieval.report(self.trainer, self, "test")

    def on_fit_start(self) -> None:
        """Check the data against the network and the loss, and build the CPU kernels, before the first step.

        Raises:
            InputError: the images do not have the network's number of channels or size, the batches hold no
                pairs for a loss of pairs or triplets, or the CPU cannot train in the Trainer's precision.
        """
        self._checkpoint = None  # no longer needed
        self._check_pairs()
        if self.device.type == "cpu":
            keep_float32(self.network)
            renorm = any(
                isinstance(layer, BatchRenorm) and not layer.frozen for layer in self.network.modules()
            )
            precision = str(self.trainer.precision)
            if precision == "16-true" or (precision == "bf16-true" and renorm):
                raise InputError(
                    f"trainer.precision {precision}: the CPU cannot train this network in it; "
                    "choose bf16-mixed or 32-true"
                )
            if renorm:
                native.try_build()
        preprocess = getattr(getattr(self.trainer, "datamodule", None), "preprocess", None)
        channels = getattr(preprocess, "channels", self.architecture.in_channels)
        if channels != self.architecture.in_channels:
            raise InputError(
                f"the data gives images of {channels} channels and the model takes "
                f"{self.architecture.in_channels}: set in_channels={channels}"
            )

        expected = self.architecture.backbone_args.get("image_size")
        if expected is not None and preprocess is not None:
            size = preprocess.to_dict()["size"]
            if Preprocess(expected).shape[1:] != preprocess.shape[1:]:
                raise InputError(
                    f"the data gives images of {size} px and the backbone was built for {expected}: "
                    f"set backbone_args.image_size to {size}"
                )
        wanted = input_settings(self.architecture.backbone, self.weights, channels)
        if wanted is not None and preprocess is not None:
            given, trained = (preprocess.mean, preprocess.std), (wanted.mean, wanted.std)
            if given != trained:
                _log.warning(
                    "the images are normalized by mean and std %s, and the weights %s were trained with %s: "
                    "set the data's mean and std to these",
                    given,
                    self.weights,
                    trained,
                )

    def _check_pairs(self) -> None:
        """Refuse batches in which a loss without proxies finds nothing to train on."""
        if self.memory is not None or any(True for _ in self.loss.parameters()):
            return
        data = getattr(self.trainer, "datamodule", None)
        single = {name for name in ("samples_per_class", "classes_per_batch") if getattr(data, name, 0) == 1}
        if self.gather and world_size() > 1:
            single.discard("classes_per_batch")  # the other processes bring other classes
        if single:
            raise InputError(
                f"{max(single)} is 1: {type(self.loss).__name__} trains on pairs in a batch, of one class "
                "and of two; set it to 2 or more"
            )

    def configure_callbacks(self) -> list[Callback]:
        """Random states in checkpoints, and Batch Renormalization's schedule unless the Trainer has one."""
        own = any(
            isinstance(callback, RenormScheduleCallback)
            for callback in getattr(self.trainer, "callbacks", [])
        )
        given = self.architecture.normalization_args
        renorm = self.architecture.normalization in ("renorm", "sync_renorm")
        if own or not renorm or given.get("frozen") or given.get("warmup_steps") is not None:
            return [RandomState()]
        schedule = RenormScheduleCallback(
            rmax=replace(PAPER_RMAX, end=given["rmax"]) if "rmax" in given else "narrowed",
            dmax=replace(PAPER_DMAX, end=given.get("dmax", PAPER_DMAX.end)),
            momentum=None if "momentum" in given else "falling",
        )
        return [RandomState(), schedule]

    def configure_optimizers(self) -> Any:
        """The optimizer over all trainable parameters (a loss's proxies included), and the scheduler.

        Raises:
            InputError: torch refuses their arguments, or the schedule needs the run's length and it is
                unknown, or the schedule ends before the run.
        """
        try:
            optimizer = self.make_optimizer(self._parameter_groups())
            scheduler = self.make_scheduler(optimizer)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"optimizer or scheduler: {error}; correct its arguments") from error
        interval = self.scheduler_interval or ("step" if isinstance(scheduler, _PER_STEP) else "epoch")
        self._fit_to_length(scheduler, interval)
        monitor = None
        if isinstance(scheduler, ReduceLROnPlateau):
            usual = "val/map@r" if scheduler.mode == "max" else "train/loss"
            monitor = self.scheduler_monitor or getattr(scheduler, "monitor", usual)
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", float(group["lr"]))  # as other schedulers do
        if self._checkpoint is not None:
            present = resuming.description(self, optimizer, scheduler, interval, monitor)
            resuming.go_on(optimizer, scheduler, present, self._checkpoint)
        schedule = {"scheduler": scheduler, "interval": interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _fit_to_length(self, scheduler: LRScheduler, interval: str) -> None:
        steps = self.trainer.estimated_stepping_batches
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            if steps == float("inf"):
                raise InputError(
                    "the schedule needs the run's length: set trainer.max_steps or trainer.max_epochs"
                )
            scheduler.set_total_steps(int(steps))
        elif isinstance(scheduler, OneCycleLR) and interval == "step" and scheduler.total_steps < steps:
            raise InputError(
                f"OneCycleLR is to end after {scheduler.total_steps} steps and the run after {steps}: "
                "make its total_steps as large"
            )

    def _parameter_groups(self) -> Any:
        """Trainable parameters, in groups where one has a learning rate of its own."""
        if self.lr is None and self.backbone_lr is None and self.proxy_lr is None:
            return [p for p in self.parameters() if p.requires_grad]
        loss = [p for p in self.loss.parameters() if p.requires_grad]
        backbone = [p for p in self.network.backbone.parameters() if p.requires_grad]
        apart = {id(p) for p in (*loss, *backbone)}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups = [(backbone, self.backbone_lr), (rest, None), (loss, self.proxy_lr)]
        rated = [(parameters, self.lr if rate is None else rate) for parameters, rate in groups if parameters]
        return [{"params": p} if rate is None else {"params": p, "lr": rate} for p, rate in rated]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, also those of a fused optimizer under bfloat16.

        Lightning refuses these in any mixed precision, but only float16 scales gradients.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Freeze the backbone in the first steps: optimizers skip parameters without a gradient."""
        del optimizer
        if self.global_step < self.freeze_backbone_steps:
            for parameter in self.network.backbone.parameters():
                parameter.grad = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint fits this module and, in training, this run.

        Raises:
            InputError: its weights are those of another network, or it has trained for longer than this run.
        """
        if self._trainer is None or not self.strict_loading:
            return
        resuming.check_weights(self, checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            resuming.check_progress(self.trainer, checkpoint)
            self._checkpoint = checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs and, under "kindred", what a bundle needs, as plain JSON values."""
        if self.trainer.optimizers and self.trainer.lr_scheduler_configs:
            schedule = self.trainer.lr_scheduler_configs[0]
            checkpoint[resuming.KEY] = resuming.description(
                self, self.trainer.optimizers[0], schedule.scheduler, schedule.interval, schedule.monitor
            )
        data = getattr(self.trainer, "datamodule", None)
        preprocess = getattr(data, "preprocess", None)
        settings = getattr(data, "split_settings", None)
        checkpoint["kindred"] = {
            "architecture": self.architecture.to_dict(),
            "preprocess": preprocess.to_dict() if preprocess is not None else None,
            "weights": self.weights,
            "split_hash": getattr(data, "split_hash", None),
            "split": settings.to_dict() if settings is not None else None,
            "training_classes": getattr(data, "training_classes", None),
            "num_classes": getattr(data, "num_classes", self.num_classes),
            "step": self.trainer.global_step,
            "epoch": self.trainer.current_epoch,
            "metrics": {
                name: float(value)
                for name, value in self.trainer.callback_metrics.items()
                if name.startswith(("val/", "test/"))
            },
        }


def _kind(value: Any) -> str:
    """A value's type or, of a tensor, type and shape."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
