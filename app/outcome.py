"""The end of a training run: its metrics beside those of baselines, and whether training helped."""

from rich import box
from rich.console import Console
from rich.table import Table

from app.evaluation.baselines import PRETRAINED, UNTRAINED
from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation import run_evaluation
from app.evaluation.evaluation_set import EvaluationSet
from app.evaluation.measure import Options
from app.export import bundle_from_checkpoint
from app.run import RunFolder
from data.datamodule import ImageDataModule
from models.bundle import Bundle

FIGURES = ("recall@1", "map@r")
TRAINED, BEFORE = "best weights of this run", "before training"

ADVICE = """\
What usually helps: a lower learning rate; pretrained weights (as configs/folder.yaml has), or others;
larger images (--data.image_size); more classes; a look at the labels.
docs/training.md says more."""


def show_outcome(
    run: RunFolder, bundle: Bundle, data: ImageDataModule, console: Console, device: str = "cpu"
) -> None:
    """Compare a run's best weights with the baselines on the validation classes, and print which is better.

    The run's first checkpoint, if there is one, is measured, too.
    """
    rows = data.validation_rows
    if not len(rows):
        console.print(
            "no validation classes of two images or more, so whether training helped is unknown; "
            "see val_fraction"
        )
        return
    items = EvaluationSet.of_images(
        data.table.take(rows), source=str(data.source), split="val", split_hash=data.split_hash
    )
    bundles = {TRAINED: bundle}
    if run.first.is_file():
        bundles[BEFORE] = bundle_from_checkpoint(run.first, trust_code=True)
    for each in bundles.values():
        each.network.to(device)
    models = [EvaluatedModel(name, each) for name, each in bundles.items()]
    options = Options(ks=(1,), device=device)
    evaluation = run_evaluation(models, items, options=options, calibrated=False, console=console)
    trained = models[0]
    # A run from random weights began with the untrained network: the row "before training" shows it.
    others = [
        model for model in evaluation.models if model is not trained and not model.name.startswith(UNTRAINED)
    ]
    ordered = sorted([*others, trained], key=lambda model: model.metrics["map@r"])
    console.print(_table(ordered, trained))
    console.print(_verdict(trained, others, bundle), highlight=False)


def _verdict(trained: EvaluatedModel, others: list[EvaluatedModel], bundle: Bundle) -> str:
    """Whether training helped; if not, what usually helps."""
    figure = trained.metrics["map@r"]
    best = max(others, key=lambda model: model.metrics["map@r"])
    ahead = f"MAP@R {best.metrics['map@r']:.3f} of {best.name} beside {figure:.3f} of the trained network"
    if figure > best.metrics["map@r"]:
        return (
            f"Training helped: MAP@R {figure:.3f}, at best {best.metrics['map@r']:.3f} without ({best.name})."
        )
    step = bundle.info.get("step")
    held = "the weights before the first step" if step == 0 else f"those of step {step}, the best of the run"
    without = [model for model in others if model.name in (BEFORE, PRETRAINED)]
    helped = all(figure > model.metrics["map@r"] for model in without)
    found = "Training helped, but not enough" if helped else "Training did not help"
    lines = [f"[bold yellow]{found}: {ahead}.[/]", f"The bundle holds {held}.", ADVICE]
    if best.name == PRETRAINED:
        lines.append(
            f"The pretrained network as it is: kindred export --backbone {bundle.architecture.backbone} "
            f"--weights {bundle.info['weights']} --out FOLDER"
        )
    return "\n".join(lines)


def _table(models: list[EvaluatedModel], trained: EvaluatedModel) -> Table:
    queries = trained.metrics["queries"]
    table = Table(
        title=f"{queries:.0f} images of the validation classes; intervals are 95% bootstrap over classes",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        cells = [
            f"{model.metrics[name]:.3f} ({model.intervals[name][0]:.3f}–{model.intervals[name][1]:.3f})"
            for name in FIGURES
        ]
        table.add_row(model.name, *cells, style="bold" if model is trained else None)
    return table
