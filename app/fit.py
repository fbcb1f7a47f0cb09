"""``kindred fit | validate | test | predict``: LightningCLI with a run folder, checkpoints and a bundle."""

import inspect
import signal
import sys
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus
from rich.console import Console

from app.config_errors import explained
from app.lightning_output import ProgressBar, Summary, quieten
from app.memory import keep_freed_memory
from app.precision import resolve
from app.run import CheckMonitors, RunFolder
from data.datamodule import ImageDataModule
from data.timing import InputTiming
from models.backbones import input_settings
from models.errors import InputError
from models.module import MetricLearner


class SaveConfig(SaveConfigCallback):
    """When training starts, replaces an earlier run's checkpoints by the full config of this run."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write nothing yet: resuming from the checkpoint may still fail under this config."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002, D102
        if trainer.is_global_zero:
            run = RunFolder(Path(trainer.default_root_dir))
            if trainer.ckpt_path is None:  # not before: a run that fails to start leaves the earlier one
                run.discard()
            file = run.path / "config.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, file, skip_none=False, overwrite=True)


class _Trainer(Trainer):
    """Lightning's Trainer with precision "auto".

    Args:
        precision: "auto" (bf16-mixed if the processor or GPU has fast bfloat16, else 32-true) or any of
            Lightning's, such as 32-true, bf16-mixed, 16-mixed or 64-true. With "auto", a resumed run keeps
            the precision that it began with, and validate, test and predict use 32-true. Validation during
            fit uses the precision of training.
    """

    def __init__(self, precision: _PRECISION_INPUT | Literal["auto"] | None = "auto", **kwargs: Any) -> None:
        super().__init__(precision=None if precision == "auto" else precision, **kwargs)


# The classes of model and data in a config that names none.
_CLASSES = {"model": "models.module.MetricLearner", "data": "data.datamodule.ImageDataModule"}


class _Parser(LightningArgumentParser):
    """Writes configs without the class names of model and data, unless they are the user's own classes."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the settings as YAML."""
        settings = yaml.safe_load(super().dump(*args, **kwargs)) or {}
        for part, usual in _CLASSES.items():
            given = settings.get(part)
            if isinstance(given, dict) and given.get("class_path") == usual:
                settings[part] = given.get("init_args", {})
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


class TrainingCLI(LightningCLI):
    """LightningCLI for MetricLearner and ImageDataModule; options on the command line override the YAML."""

    def __init__(self, arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> None:
        self.extra_callbacks = list(callbacks)
        # The model builds the parts of a loss or miner: a checkpoint keeps their specs, not pickled modules.
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
        try:
            super().__init__(
                MetricLearner,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                trainer_class=_Trainer,
                parser_class=_Parser,
                parser_kwargs={"exit_on_error": False, "prog": "kindred"},
                args=list(arguments),
            )
        except SystemExit:
            # Lightning exits after Ctrl-C, when the callbacks have saved a checkpoint; write the bundle, too.
            trainer = getattr(self, "trainer", None)
            if trainer is None or trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.after_fit()
            raise KeyboardInterrupt from None

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingCLI":
        """Return itself: models refer to the CLI that built them, and a moving average copies the model."""
        return self

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse with sys.argv hidden: LightningCLI warns if it has arguments besides ``args``.

        sys.argv is restored afterwards, because a distributed run starts its processes from it.
        """
        argv, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().parse_arguments(parser, args)
        finally:
            sys.argv = argv

    def _parse_ckpt_path(self) -> None:
        """Take no settings from the checkpoint: only the config counts."""

    def after_fit(self) -> None:
        """Write the bundle, print where it is, and compare it with the baselines."""
        if not self.trainer.is_global_zero:
            return
        console = Console()
        # Without a step, checkpoints in the folder are those of an earlier run.
        trained = self.trainer.fit_loop.epoch_progress.total.started and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trained or (bundle := self.run.write_bundle()) is None:
            console.print(
                "no bundle: the run took no step, was a rehearsal (trainer.fast_dev_run) or wrote no "
                "checkpoints (trainer.enable_checkpointing)",
                soft_wrap=True,
            )
            return
        console.print(f"bundle written to {self.run.bundle}; checkpoints and logs are beside it")
        if self.trainer.state.status == TrainerStatus.FINISHED and self.options.compare:
            from app.outcome import show_outcome  # imports the whole evaluation

            device = str(self.trainer.strategy.root_device)
            show_outcome(self.run, bundle, self.datamodule, console, device)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our options, and link the model's settings that follow from the data."""
        parser.add_argument(
            "--run",
            type=Path,
            default=Path("runs/latest"),
            help="Folder for checkpoints, logs, config and bundle.",
        )
        parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run in that folder.")
        parser.add_argument(
            "--monitor",
            type=str | None,
            default="val/map@r",
            help="Validation metric whose highest value marks the best checkpoint. MAP@R still tells "
            "checkpoints apart when recall@1 is near 1.",
        )
        parser.add_argument(
            "--save_seconds",
            type=float,
            default=60.0,
            help="Seconds between two writes of checkpoints/last.ckpt.",
        )
        parser.add_argument(
            "--compare",
            type=bool,
            default=True,
            help="After training, compare the best weights on the validation classes with raw pixels, colour "
            "histograms and the weights before training.",
        )
        parser.link_arguments("run", "trainer.default_root_dir", compute_fn=str)
        for target, source in (("in_channels", "preprocess.channels"), ("num_classes", "num_classes")):
            parser.link_arguments(
                "data", f"model.init_args.{target}", compute_fn=attrgetter(source), apply_on="instantiate"
            )

    @property
    def options(self) -> Any:
        """Parsed options of the running subcommand."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Check the options, find the checkpoint, and fill in what depends on weights and machine."""
        self.run = RunFolder(Path(self.options.run))
        self._set_preprocessing_of_weights()
        if self.options.monitor and self.options.monitor.startswith("test"):
            raise InputError(
                f"monitor {self.options.monitor!r}: choosing a checkpoint by a test metric is a leak"
            )
        for name in ("check_val_every_n_epoch", "val_check_interval"):
            if self.options.trainer[name] == 0:
                raise InputError(
                    f"trainer.{name} is 0: give at least 1, or switch validation off by "
                    "trainer.limit_val_batches: 0"
                )
        if self.options.ckpt_path is not None:
            self.options.ckpt_path = self.run.resolve(str(self.options.ckpt_path))
        elif self.subcommand == "fit":
            if not self.options.overwrite:
                self.run.refuse_to_mix()
            self.run.require_writable()
        elif self.run.best.is_file():
            self.options.ckpt_path = str(self.run.best)
        self.precision_reason: str | None = None
        trainer = self.options.trainer
        if trainer.precision == "auto":
            trainer.precision, self.precision_reason = resolve(
                trainer, self.options.ckpt_path, training=self.subcommand == "fit"
            )

    def _set_preprocessing_of_weights(self) -> None:
        """Set image size, normalization and interpolation to those of the weights, unless configured."""
        model, data = (self.options[part].get("init_args", {}) for part in ("model", "data"))
        mode = data.get("mode")
        settings = input_settings(model.get("backbone", ""), model.get("weights"), len(mode or "RGB"))
        if settings is None or mode is None:
            return
        for key, value in (
            ("image_size", settings.size),
            ("mean", list(settings.mean)),
            ("std", list(settings.std)),
            ("interpolation", settings.interpolation),
        ):
            if key in data and data[key] is None:
                data[key] = value

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add loggers, progress bar, checkpoints and summary to those of the config."""
        trainer = self.config_init[self.subcommand]["trainer"]
        given = [trainer.callbacks] if isinstance(trainer.callbacks, Callback) else trainer.callbacks or []
        extra = list(self.extra_callbacks)
        if trainer.enable_progress_bar is not False:
            extra.append(ProgressBar())
        if self.subcommand == "fit":
            if trainer.logger is None or trainer.logger is True:
                trainer.logger = self.run.loggers()
                if not any(isinstance(callback, InputTiming) for callback in given):
                    extra.append(InputTiming())
            if trainer.enable_checkpointing is not False:
                extra += self.run.callbacks(self.options.monitor, self.options.save_seconds)
            if trainer.enable_model_summary is not False:
                extra.append(Summary(max_depth=1))
        else:
            trainer.logger = False
        trainer.callbacks = [CheckMonitors(), *given, *extra]
        made = super().instantiate_trainer(**kwargs)
        summarized = trainer.enable_model_summary is not False
        if summarized and self.precision_reason is not None and made.is_global_zero:
            Console().print(f"precision {trainer.precision}: {self.precision_reason}", soft_wrap=True)
        return made


def run_training(arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> TrainingCLI:
    """Run one of Lightning's commands as the command line would.

    Args:
        arguments: The command and its options, for example ``["fit", "--config", "configs/omniglot.yaml"]``.
        callbacks: Callbacks to add to those of the config.

    Returns:
        The finished CLI object, with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        InputError: The config or the data is unusable.
        KeyboardInterrupt: Ctrl-C, after a checkpoint and a bundle of the weights so far were written.
    """
    quieten()
    if not torch.cuda.is_available():
        keep_freed_memory()
    try:
        return TrainingCLI(arguments, callbacks)
    except (
        ArgumentError,
        MisconfigurationException,
        ModuleNotFoundError,
        RuntimeError,
        ValueError,
    ) as error:
        parts = (MetricLearner, ImageDataModule, Trainer)
        settings = chain.from_iterable(inspect.signature(part).parameters for part in parts)
        told = explained(error, ["model", "data", "trainer", *settings])
        if told is error:
            raise
        raise told from error
