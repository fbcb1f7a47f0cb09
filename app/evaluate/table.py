"""The table that the terminal shows."""

from rich import box
from rich.table import Table

from app.evaluate.run import Evaluation


def metric_columns(evaluation: Evaluation) -> list[str]:
    """The retrieval figures worth a column."""
    return [*(f"recall@{k}" for k in evaluation.options.ks), "map@r", "r_precision"]


def as_table(evaluation: Evaluation) -> Table:
    """Baselines first, trained models last; recall@1 with its 95% interval."""
    names = metric_columns(evaluation)
    queries = evaluation.models[0].metrics["queries"]
    # No vertical lines: all figures then fit a terminal of 80 columns.
    table = Table(
        title=f"{queries:.0f} queries, exact search; intervals are 95% bootstrap over classes",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for model in sorted(evaluation.models, key=lambda m: not m.baseline):
        cells = []
        for name in names:
            low, high = model.intervals[name]
            spread = f"\n[dim]{low:.3f}–{high:.3f}[/dim]" if name == names[0] else ""
            cells.append(f"{model.metrics[name]:.3f}{spread}")
        table.add_row(model.name, *cells, style=None if model.baseline else "bold")
        if model.reranked:
            table.add_row("  re-ranked", *(f"{model.reranked[name]:.3f}" for name in names), style="dim")
    return table


def as_few_shot_table(evaluation: Evaluation) -> Table:
    """Few-shot accuracies, baselines first, with their 95% intervals over episodes."""
    protocols = evaluation.options.few_shot
    table = Table(
        title=f"{protocols[0].episodes} episodes; intervals are 95% over episodes of these classes",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model")
    for protocol in protocols:
        table.add_column(protocol.name, justify="right")
    for model in sorted(evaluation.models, key=lambda m: not m.baseline):
        cells = []
        for protocol in protocols:
            low, high = model.intervals[protocol.name]
            cells.append(f"{model.metrics[protocol.name]:.4f}\n[dim]{low:.4f}–{high:.4f}[/dim]")
        table.add_row(model.name, *cells, style=None if model.baseline else "bold")
    return table
