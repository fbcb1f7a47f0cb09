"""What an experiment's YAML file may say, checked before anything runs."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InputError
from models.normalization import Normalization

Model = TypeVar("Model", bound=BaseModel)
_log = logging.getLogger(__name__)
# Keys of earlier files, read for one more version: what they are called now.
_FORMER = {
    "arms": "variants",
    "decisive": "primary",
    "figure": "metric",
    "arm": "variant",
    "share_at_least": "fraction_at_least",
}
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Which images."""

    # As data.sources.open_source takes it; a path (with a slash or an ending) is first looked for below the
    # data folder.
    source: str
    image_size: Positive
    mode: Literal["RGB", "L"] = "RGB"
    # The first so many images of each class (in the order of their names) are for training and the rest for
    # validation; None takes the set's folders "train" and "val".
    train_images: Positive | None = None
    only: Literal["train", "val", "test"] | None = None  # leave out the other parts of the set's own split
    classes: Positive | None = None  # how many classes to keep, the first by name; None keeps all
    mean: list[float] = []  # of each channel; if empty, that of Preprocess
    std: list[float] = []  # likewise
    # Validate on classes that training never sees: those of the set's own test split, or of one by a hash.
    unseen: bool = False
    # With `unseen`: divide the classes into so many parts by a hash and validate on the first; with
    # `only: train`, the set's own test classes stay untouched.
    folds: Annotated[int, Field(ge=2)] | None = None
    pretraining: bool = False  # with `unseen`: set every second training class apart for pretraining
    decode: Literal["once", "when needed"] = "once"  # "when needed": for sets that do not fit in memory


class Pretraining(_Strict):
    """What comes before the variant's own training, the same for all variants of a seed: a classifier of
    classes set apart, with batch normalization of whole batches, which are as large as the variant's.
    """

    steps: Positive
    learning_rate: Annotated[float, Field(gt=0)] = 0.1


class RampSetting(_Strict):
    """A ``models.renorm.Ramp`` in fractions of the run."""

    start: float
    end: float
    begin: Fraction
    finish: Fraction


class Groups(_Strict):
    """Which images are normalized together."""

    size: Positive  # images in a group
    classes: Positive | None = None  # classes in a group; None shuffles the batch
    # One group after another, as in gradient accumulation: each moves the running statistics (and renorm's
    # averages of gradient statistics) that the next one starts from. Otherwise all groups of a step start
    # from the same ones, as separate processes do.
    consecutive: bool = False
    # Renorm's gradient subtracts statistics of all groups of the step together, averaged over steps with this
    # weight of a step; 1 takes the step's alone, and with 0 nothing is subtracted. None leaves each group its
    # own, by the layer's rule.
    shared_gradient_momentum: Fraction | None = None


class Setting(_Strict):
    """One variant, complete; backbone, normalization, loss and weights are written as in ``kindred fit``."""

    # "classification": a linear classifier of the training classes, tested on further images of them;
    # "triplets": an embedding, by triplets or another loss, tested by recall on classes unseen in training.
    task: Literal["classification", "triplets"] = "classification"
    data: Data
    augmentation: dict[str, Any] | None = None  # arguments of data.augment.geometry.Geometry
    backbone: str = "resnet10"
    backbone_args: dict[str, Any] = {}
    normalization: Normalization = "batch"
    normalization_args: dict[str, Any] = {}
    ramps: dict[Literal["rmax", "dmax", "momentum"], RampSetting] = {}  # for renorm; by default the paper's
    classes_per_step: Positive  # in a gradient batch
    images_per_class: Positive
    groups: Groups | None = None  # None normalizes the whole batch
    # A step's groups are gone through in so many passes, whose gradients are summed: the same step in less
    # memory.
    passes: Positive = 1
    steps: Positive
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # tests always run in float32
    # sgd has momentum 0.9; rmsprop the paper's decay of 0.9 and no momentum; adamw torch's constants.
    optimizer: Literal["sgd", "rmsprop", "adamw"] = "sgd"
    nesterov: bool = False  # of sgd's momentum
    learning_rate: Annotated[float, Field(gt=0)] = 0.2  # its peak
    # Peak for what starts from random numbers in metric learning: the head and a loss's proxies;
    # None takes `learning_rate`.
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    # Decay of the moving average of weights and statistics that is tested; None tests the last weights.
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    curve_points: Positive = 5  # how many times validation accuracy is measured on the way
    # Of "triplets"; None is FaceNet's on semi-hard triplets. Others see the whole batch, without mining.
    loss: dict[str, Any] | None = None
    mining: Literal["groups", "batch"] = "groups"  # inside each normalization group, or the whole batch
    embedding_dim: Positive = 64
    weights: str | None = None  # of the backbone before triplets
    pretraining: Pretraining | None = None  # start triplets from a classifier's backbone


class Comparison(_Strict):
    """A paired difference to report, and the published conclusion, which holds within all given bounds."""

    title: str
    variant: str  # its metric is reported less that of `against`
    against: str
    loss_from: str | None = None  # also report the fraction of (loss_from - against) that `variant` recovers
    at_least: float | None = None  # of the difference, in points
    at_most: float | None = None
    fraction_at_least: float | None = None  # of the fraction recovered


class Reduced(_Strict):
    """The part of an experiment that ``make evidence`` repeats."""

    variants: list[str]
    seeds: list[int]


class Experiment(_Strict):
    """A whole experiment."""

    title: str  # what it asks, one line
    base: dict[str, Any]  # what all variants share, as Setting
    variants: dict[str, dict[str, Any]]  # what each has otherwise; mappings are merged into the base's
    seeds: list[int] = [0]  # of the primary variants; the others run with the first alone
    primary: list[str] = []
    metric: str = "accuracy/running"  # that comparisons are of
    comparisons: list[Comparison] = []
    reduced: Reduced | None = None

    def setting(self, variant: str) -> Setting:
        """A variant, complete and checked.

        Raises:
            InputError: the variant does not exist, or something in it is wrong.
        """
        if variant not in self.variants:
            raise InputError(f"variant {variant!r} is none of {', '.join(self.variants)}")
        return _checked(Setting, merge(self.base, self.variants[variant]), f"variant {variant!r}")


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` over it; mappings are merged, except that null takes one away."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment, every variant included.

    Raises:
        InputError: the file is missing, is no YAML, or says something unknown or out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"{path}: no such experiment; there are: {known}") from error
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({error})") from error
    former: set[str] = set()
    experiment = _checked(Experiment, _with_present_keys(content, former), str(path))
    for name in sorted(former):
        message = "%s: %s is now called %s; the next version no longer reads the old name"
        _log.warning(message, path, name, _FORMER[name])
    for variant in experiment.variants:
        experiment.setting(variant)
    named = {
        name for c in experiment.comparisons for name in (c.variant, c.against, c.loss_from or c.variant)
    }
    named |= {*experiment.primary, *(experiment.reduced.variants if experiment.reduced else [])}
    if unknown := named - set(experiment.variants):
        raise InputError(f"{path}: names a variant that it lacks: {sorted(unknown)[0]!r}")
    return experiment


def _with_present_keys(content: Any, former: set[str]) -> Any:
    """The file's content with former keys renamed; ``former`` takes up those that are found."""
    if isinstance(content, list):
        return [_with_present_keys(value, former) for value in content]
    if not isinstance(content, dict):
        return content
    former |= set(content) & set(_FORMER)
    nested = ("comparisons", "reduced")
    return {
        _FORMER.get(key, key): _with_present_keys(value, former) if key in nested else value
        for key, value in content.items()
    }


def _checked(model: type[Model], content: Any, where: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{where}: {at}: {first['msg']}") from error
