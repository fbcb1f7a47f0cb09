"""``kindred fit | validate | test | predict``: LightningCLI with our run folder, checkpoints and bundle."""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, RichModelSummary, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus
from rich.console import Console
from rich.table import Table

from app.config_errors import WRAPPED, decisive
from app.memory import keep_freed_memory
from app.precision import FULL, begun_with, fastest
from app.quiet import quieten
from app.run import CheckMonitors, RunFolder
from data.datamodule import ImageDataModule
from data.timing import InputTiming
from models.backbones import input_settings
from models.errors import InputError
from models.module import MetricLearner


class SaveConfig(SaveConfigCallback):
    """Writes the full config into the run folder, where a resumed run finds the one it started with."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Nothing yet: a checkpoint may refuse to be resumed under this config."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002, D102
        if trainer.is_global_zero:
            file = Path(trainer.default_root_dir) / "config.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, file, skip_none=False, overwrite=True)


class _Summary(RichModelSummary):
    """Lightning's table of a model's parts, without what is always the same: modes, and FLOPs of 0."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        columns = [column for column in summary_data if column[0] in ("Name", "Type", "Params")]
        table = Table(*(name for name, _ in columns))
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*row)
        Console().print(table)
        Console().print(f"{total_parameters:,} parameters, of which {trainable_parameters:,} train")


class _Progress(RichProgressBar):
    """Lightning's progress bar without the logger's version number, and without an end of endless epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "   ")

    def get_metrics(self, *args: Any, **kwargs: Any) -> Any:
        return {
            name: value for name, value in super().get_metrics(*args, **kwargs).items() if name != "v_num"
        }


class _Trainer(Trainer):
    """Lightning's Trainer, whose precision may be left to the machine.

    Args:
        precision: "auto" is bf16-mixed where the processor or GPU has fast bfloat16, else 32-true; a resumed
            run keeps the one it began with, and validate, test and predict take 32-true. Or one of 32-true,
            bf16-mixed, 16-mixed, 64-true and Lightning's others. fit validates in it, too.
    """

    def __init__(self, precision: _PRECISION_INPUT | Literal["auto"] | None = "auto", **kwargs: Any) -> None:
        super().__init__(precision=None if precision == "auto" else precision, **kwargs)


# What a config means by model and data where it names no class.
_CLASSES = {"model": "models.module.MetricLearner", "data": "data.datamodule.ImageDataModule"}


class _Parser(LightningArgumentParser):
    """Writes configs as people do: model and data name a class only where it is the user's own."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The settings as YAML."""
        settings = yaml.safe_load(super().dump(*args, **kwargs)) or {}
        for part, usual in _CLASSES.items():
            given = settings.get(part)
            if isinstance(given, dict) and given.get("class_path") == usual:
                settings[part] = given.get("init_args", {})
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


class TrainingCLI(LightningCLI):
    """Everything in YAML, everything overridable on the command line."""

    def __init__(self, arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> None:
        self.extra_callbacks = list(callbacks)
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
            # Lightning ends the process after Ctrl-C; the callbacks have saved, the bundle is still due.
            trainer = getattr(self, "trainer", None)
            if trainer is None or trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.after_fit()
            raise KeyboardInterrupt from None

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingCLI":
        """Itself: the models that it builds refer to it, and a moving average begins with a model's copy."""
        return self

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; LightningCLI warns of arguments that are given here and in sys.argv, so hide the latter.

        Only here: the processes of a distributed run are started by it.
        """
        argv, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().parse_arguments(parser, args)
        finally:
            sys.argv = argv

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: the config decides, as it does with ``--ckpt_path last``."""

    def after_fit(self) -> None:
        """Write the bundle, say where it is, and what training was good for."""
        if not self.trainer.is_global_zero or (bundle := self.run.write_bundle()) is None:
            return
        console = Console()
        console.print(f"bundle written to {self.run.bundle}; checkpoints and logs are beside it")
        if self.trainer.state.status == TrainerStatus.FINISHED and self.options.compare:
            from app.outcome import show_outcome  # and with it all of the evaluation

            device = str(self.trainer.strategy.root_device)
            show_outcome(self.run, bundle, self.datamodule, console, device)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, and what the model takes from the data."""
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
            help="Validation figure whose highest value marks the best checkpoint; MAP@R still tells "
            "checkpoints apart where few classes hold recall@1 near 1.",
        )
        parser.add_argument(
            "--save_seconds",
            type=float,
            default=60.0,
            help="Time between two writes of checkpoints/last.ckpt.",
        )
        parser.add_argument(
            "--compare",
            type=bool,
            default=True,
            help="End with a table on the validation classes: raw pixels, colour histogram, before training, "
            "best.",
        )
        parser.link_arguments("run", "trainer.default_root_dir", compute_fn=str)
        for target, source in (("in_channels", _channels), ("num_classes", _num_classes)):
            parser.link_arguments(
                "data", f"model.init_args.{target}", compute_fn=source, apply_on="instantiate"
            )

    @property
    def options(self) -> Any:
        """The parsed options of the command that runs."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint to resume from before anything slow happens; complete the data's settings."""
        self.run = RunFolder(Path(self.options.run))
        self._prepare_images_as_weights_want()
        if self.options.monitor and self.options.monitor.startswith("test"):
            raise InputError(
                f"monitor {self.options.monitor!r}: choosing a checkpoint by test figures is a leak"
            )
        if self.options.ckpt_path is not None:
            self.options.ckpt_path = self.run.resolve(str(self.options.ckpt_path))
        elif self.subcommand == "fit":
            if self.options.overwrite:
                self.run.discard_checkpoints()
            else:
                self.run.refuse_to_mix()
            self.run.require_writable()
        elif self.run.best.is_file():
            self.options.ckpt_path = str(self.run.best)
        self.precision_reason: str | None = None
        if self.options.trainer.precision == "auto":
            self.options.trainer.precision, self.precision_reason = self._precision()

    def _precision(self) -> tuple[str | None, str | None]:
        """What "auto" means here, and why, where it is for training."""
        trainer = self.options.trainer
        if "precision" in str(trainer.plugins).lower():
            return None, None  # the plugin decides
        if self.subcommand != "fit":
            return FULL, None
        chosen, reason = fastest(trainer.accelerator)
        if self.options.ckpt_path and (begun := begun_with(self.options.ckpt_path)) is not None:
            reason = "as the run began" if begun == chosen else f"as the run began, although {reason}"
            chosen = begun
        return chosen, reason

    def _prepare_images_as_weights_want(self) -> None:
        """Size, normalization and interpolation of pretrained weights, where the config leaves them open."""
        model, data = (self.options[part].get("init_args", {}) for part in ("model", "data"))
        settings = input_settings(model.get("backbone", ""), model.get("weights"))
        if settings is None or data.get("mode") is None:
            return
        fitting = settings.for_channels(len(data["mode"]))
        for key, value in (
            ("image_size", fitting.size),
            ("mean", list(fitting.mean)),
            ("std", list(fitting.std)),
            ("interpolation", fitting.interpolation),
        ):
            if key in data and data[key] is None:
                data[key] = value

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add loggers, progress bar and checkpoints to what the config asks for."""
        trainer = self.config_init[self.subcommand]["trainer"]
        given = [trainer.callbacks] if isinstance(trainer.callbacks, Callback) else trainer.callbacks or []
        extra = list(self.extra_callbacks)
        if trainer.enable_progress_bar is not False:
            extra.append(_Progress())
        if self.subcommand == "fit":
            if trainer.logger is None or trainer.logger is True:
                trainer.logger = self.run.loggers()
                if not any(isinstance(callback, InputTiming) for callback in given):
                    extra.append(InputTiming())
            if trainer.enable_checkpointing is not False:
                extra += self.run.callbacks(self.options.monitor, self.options.save_seconds)
            if trainer.enable_model_summary is not False:
                extra.append(_Summary(max_depth=1))
        else:
            trainer.logger = False
        trainer.callbacks = [CheckMonitors(), *given, *extra]
        made = super().instantiate_trainer(**kwargs)
        if self.precision_reason is not None and made.is_global_zero:
            Console().print(f"precision {trainer.precision}: {self.precision_reason}", soft_wrap=True)
        return made


def _channels(data: ImageDataModule) -> int:
    return data.preprocess.channels


def _num_classes(data: ImageDataModule) -> int:
    return data.num_classes


def run_training(arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> TrainingCLI:
    """Run one of Lightning's commands as the command line would.

    Args:
        arguments: The command and its options, for example ``["fit", "--config", "configs/omniglot.yaml"]``.
        callbacks: Callbacks beside those of the config.

    Returns:
        The finished command, with its ``trainer``, ``model`` and ``datamodule``.

    Raises:
        InputError: The config or the data is unusable.
        KeyboardInterrupt: Ctrl-C; a checkpoint and a bundle of what was learnt so far are on the disk.
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
        told = _told(error)
        if told is error:
            raise
        raise told from error


def _told(error: Exception) -> Exception:
    """The error itself, or what to say in its place where a library wrapped it or complains of a setting."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # While it parses, jsonargparse tries to open values as files; what goes wrong there says nothing.
    kinds = InputError if isinstance(error, ArgumentError) else (InputError, OSError)
    for cause in causes:
        if isinstance(cause, kinds):
            return cause
    if isinstance(error, ArgumentError) or WRAPPED in str(error):
        return InputError(decisive(str(error)))
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"].startswith("lightning."):
        return InputError(str(error))  # of its own accord: an argument is wrong, or a package missing
    return error
