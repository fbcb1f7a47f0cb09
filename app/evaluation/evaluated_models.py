"""The models under evaluation, and the results of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.embedding_files import SavedEmbeddings
from app.export import bundle_from_checkpoint
from models.bundle import Bundle, usable_device
from models.errors import InputError
from models.metrics import PairHistogram, RetrievalResult, Threshold


@dataclass(eq=False)
class EvaluatedModel:
    """A model or baseline, its embeddings, and its metrics, which `measure` fills in."""

    name: str  # in tables
    bundle: Bundle | None = None  # None for saved embeddings and for baselines without a network
    folder: Path | None = None  # of the bundle; None for checkpoints and ONNX files
    baseline: bool = False
    about: dict[str, Any] = field(default_factory=dict)  # its origin: fingerprint, file, dimension
    vectors: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0)))  # float (N, dim), of each item
    retrieval: RetrievalResult = field(init=False)  # metrics of each query
    query_rows: NDArray[np.int64] = field(init=False)  # (Q,), of the evaluated queries among the N
    neighbours: NDArray[np.int64] = field(init=False)  # (Q, k), rows of their nearest neighbours
    similarity: NDArray[np.float32] = field(init=False)  # (Q, k), their cosines
    hits: NDArray[np.bool_] = field(init=False)  # (Q, k), whether they match
    metrics: dict[str, float] = field(init=False)  # means, verification, clustering and few-shot metrics
    # 95% intervals of metrics: bootstrap over classes, or for few-shot accuracies over episodes.
    intervals: dict[str, tuple[float, float]] = field(init=False)
    pairs: PairHistogram | None = None  # None without pairs of both kinds
    thresholds: list[Threshold] = field(default_factory=list)  # empty unless asked for
    reranked: dict[str, float] = field(default_factory=dict)  # metrics after re-ranking; likewise

    def __post_init__(self) -> None:
        if self.bundle is not None:
            self.about = {"fingerprint": self.bundle.fingerprint, "dim": self.bundle.dim}


def load_models(
    bundles: Sequence[Path], checkpoints: Sequence[Path], device: str, trust_code: bool = False
) -> list[EvaluatedModel]:
    """Load models onto a device; each is named after its run's folder, repeated names are numbered.

    Raises:
        InputError: a bundle or checkpoint is missing or damaged, or the device cannot be used.
    """
    found = []
    for path in bundles:
        bundle = Bundle.load(path, device, trust_code=trust_code)
        # No folder for an ONNX file in a bundle: its metrics must not be written into the bundle.
        found.append(EvaluatedModel(_run_name(path), bundle, path if path.is_dir() else None))
    for path in checkpoints:
        bundle = bundle_from_checkpoint(path, trust_code=trust_code)
        bundle.network.to(usable_device(device))
        found.append(EvaluatedModel(_run_name(path), bundle))
    seen: dict[str, int] = {}
    for model in found:
        again = seen[model.name] = seen.get(model.name, 0) + 1
        if again > 1:
            model.name = f"{model.name} ({again})"
    return found


def saved_model(path: Path, saved: SavedEmbeddings) -> EvaluatedModel:
    """A model whose embeddings come from a file.

    Raises:
        InputError: the embeddings are not a matrix.
    """
    if saved.vectors.ndim != 2:
        raise InputError(f"{path}: embeddings must have shape (items, dimensions), not {saved.vectors.shape}")
    about = {"file": str(path), "dim": int(saved.vectors.shape[1])}
    return EvaluatedModel(path.stem, about=about, vectors=saved.vectors)


def _run_name(path: Path) -> str:
    parts = [part for part in path.resolve().with_suffix("").parts if part not in ("bundle", "checkpoints")]
    return "/".join(parts[-2:]) if path.suffix in (".ckpt", ".onnx") else parts[-1]
