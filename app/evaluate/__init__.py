"""``kindred evaluate``: exact figures of bundles, checkpoints and saved embeddings, with a report."""

from app.evaluate.command import evaluate
from app.evaluate.run import Evaluation, run_evaluation

__all__ = ["Evaluation", "evaluate", "run_evaluation"]
