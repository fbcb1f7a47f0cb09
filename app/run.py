"""The folder of a training run: its paths, and the callbacks that write its checkpoints."""

import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerStatus

from app.export import bundle_from_checkpoint
from app.export.checkpoint import read_checkpoint
from models.bundle import Bundle
from models.errors import InputError


class RunFolder:
    """The folder of a run: its checkpoints, bundle, ``config.yaml`` and ``logs/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.ckpt"  # to resume from
        self.best = path / "checkpoints" / "best.ckpt"  # by the monitored validation metric
        self.first = path / "checkpoints" / "first.ckpt"  # with the weights before the first step
        self.bundle = path / "bundle"  # of the best weights, or of the last ones if nothing was monitored

    def resolve(self, checkpoint: str) -> str:
        """Turn "last" or "best" into a path.

        Raises:
            InputError: There is no such checkpoint, or it is none of Lightning.
        """
        path = {"last": self.last, "best": self.best}.get(checkpoint, Path(checkpoint))
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint; leave --ckpt_path out to start afresh")
        if "pytorch-lightning_version" not in read_checkpoint(path):
            raise InputError(
                f"{path}: no checkpoint of Lightning; to start from weights alone, give them as model.weights"
            )
        return str(path)

    def refuse_to_mix(self) -> None:
        """Refuse to start a fresh run in the folder of another run.

        Raises:
            InputError: The folder holds checkpoints already.
        """
        if self.last.is_file() or self.best.is_file():
            raise InputError(
                f"{self.path}: holds a run already; continue it with --ckpt_path last, "
                "replace it with --overwrite, or name another folder with --run"
            )

    def require_writable(self) -> None:
        """Make the folder.

        Raises:
            InputError: It cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); make it writable, or name another "
                "folder with --run"
            ) from error

    def discard(self) -> None:
        """Delete checkpoints and bundle of an earlier run, so that none is taken for one of this run."""
        for checkpoint in (self.last, self.best, self.first):
            checkpoint.unlink(missing_ok=True)
        shutil.rmtree(self.bundle, ignore_errors=True)

    def loggers(self) -> list[Logger]:
        """TensorBoard, whose log a resumed run continues, and CSV, of which it starts a new file."""
        return [
            TensorBoardLogger(self.path, name="logs", version="tensorboard"),
            CSVLogger(self.path / "logs", name="csv"),
        ]

    def callbacks(self, monitor: str | None, save_seconds: float) -> list[lightning.Callback]:
        """The callbacks that write the last checkpoint and, if there is a metric to monitor, the best one."""
        callbacks: list[lightning.Callback] = [LastCheckpoint(self.last, save_seconds)]
        if monitor is not None:
            callbacks.append(BestCheckpoint(self.best, self.first, monitor))
        return callbacks

    def write_bundle(self) -> Bundle | None:
        """Write the bundle of the best checkpoint, else of the last one; None if there is neither."""
        for checkpoint in (self.best, self.last):
            if checkpoint.is_file():
                bundle = bundle_from_checkpoint(checkpoint, trust_code=True)
                bundle.save(self.bundle)
                return bundle
        return None


# Validation metrics of which more is better.
HIGHER_IS_BETTER = ("val/recall@", "val/map@", "val/r_precision")


class CheckMonitors(lightning.Callback):
    """Refuses callbacks and schedulers whose monitor or its mode does not fit the validation metrics.

    It must be the first callback, because the others raise errors of their own.
    """

    def on_load_checkpoint(  # noqa: D102
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        self._check(trainer, checkpoint.get("kindred", {}).get("metrics", ()))

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: D102
        if not trainer.sanity_checking:
            self._check(trainer, trainer.callback_metrics)

    def _check(self, trainer: lightning.Trainer, figures: Collection[str]) -> None:
        known = sorted(figure for figure in figures if figure.startswith("val/"))
        for follower in (*trainer.callbacks, *trainer.lr_scheduler_configs):  # type: ignore[attr-defined]  # untyped there
            monitor = getattr(follower, "monitor", None)
            followed = isinstance(follower, BestCheckpoint) or str(monitor).startswith("val/")
            if not known or monitor is None or not followed:
                continue
            if monitor not in known:
                raise InputError(
                    f"monitor {monitor!r}: no such validation metric; choose one of {', '.join(known)}"
                )
            # Lightning's default is min.
            if getattr(follower, "mode", None) == "min" and monitor.startswith(HIGHER_IS_BETTER):
                raise InputError(
                    f"{type(follower).__name__} would take the lowest {monitor} for the best: set mode: max"
                )


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the highest validation metric, and in ``first`` that before the first step.

    The weights before the first step may be the best ones, too.
    """

    def __init__(self, path: Path, first: Path, monitor: str) -> None:
        self.first, self._validated_at = first, -1
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=False,  # after each validation instead
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best metric if its checkpoint is in this folder, which may have been moved."""
        file = f"{self.dirpath}/{self.filename}{self.FILE_EXTENSION}"
        if not Path(file).is_file():
            return
        paths = {"dirpath": self.dirpath, "best_model_path": file, "kth_best_model_path": file}
        super().load_state_dict(
            {**state_dict, **paths, "best_k_models": {file: state_dict["best_model_score"]}}
        )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate a fresh run before its first step."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step:
            return
        self._last_global_step_saved = -1  # otherwise nothing is saved before the first step
        _validate(trainer)
        if trainer.is_global_zero and self.best_model_path:
            shutil.copyfile(self.best_model_path, self.first)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save if this is the best so far."""
        super().on_validation_end(trainer, pl_module)
        self._validated_at = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the last weights if the run ended between two validations."""
        super().on_train_end(trainer, pl_module)
        if trainer.state.status == TrainerStatus.RUNNING and self._validated_at != trainer.global_step:
            _validate(trainer)


def _validate(trainer: lightning.Trainer) -> None:
    """Validate as Lightning does between two steps."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


class LastCheckpoint(Checkpoint):
    """Writes the checkpoint to resume from: after each epoch, at intervals within it, and on Ctrl-C.

    Lightning's ModelCheckpoint takes only one of these triggers. Writes are atomic; ``seconds`` is the least
    time between two of them within an epoch.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self._saved_step = 0
        self._saved_at = time.monotonic()

    def _save(self, trainer: lightning.Trainer) -> None:
        rehearsal = trainer.fast_dev_run or trainer.sanity_checking  # type: ignore[attr-defined]  # untyped there
        if rehearsal or trainer.global_step == self._saved_step:
            return
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002, D102
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: D102
        due = time.monotonic() - self._saved_at > self.seconds
        # Not after an epoch's last batch: a run resumed from there would skip the epoch's validation, and a
        # checkpoint follows anyway. All ranks take part in a write, so rank 0's clock decides for all.
        if trainer.strategy.broadcast(due) and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: D102
        self._save(trainer)

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: D102
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save(trainer)
