"""Read saved embeddings: .npy, .npz, Parquet, folders of ``kindred embed``; never pickles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.embed.shards import ID, read_batches
from app.embed.store_import import complete_plan
from models.errors import InputError

VECTOR_NAMES = ("embeddings", "embedding", "vectors", "vector", "features", "X")
LABEL_NAMES = ("labels", "label", "targets", "target", "class", "y")
SHARD_BATCH = 65_536  # rows in a batch


@dataclass(frozen=True)
class SavedEmbeddings:
    """Content of a file."""

    vectors: NDArray[Any]  # float (N, dim)
    labels: NDArray[Any] | None  # (N,) integers or strings
    columns: dict[str, NDArray[Any]]  # further columns (N,), by which the report slices


def load_embeddings(path: Path) -> SavedEmbeddings:
    """Read a file of embeddings, or the folder of shards that ``kindred embed`` wrote.

    `.npy` holds only the matrix. `.npz` holds it under `embeddings`, `vectors`, `features` or `X`, and labels
    under `labels`, `targets` or `y`. Parquet has a column of lists and a column of labels with these names;
    its other plain columns become slices.

    Raises:
        InputError: the file is missing, unreadable or without embeddings, or the folder is incomplete.
    """
    if path.is_dir():
        return _named(path, _shard_columns(path))
    if not path.is_file():
        raise InputError(f"{path}: no such file of embeddings")
    try:
        if path.suffix == ".npy":
            return SavedEmbeddings(np.load(path, allow_pickle=False), None, {})
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files}
            return _named(path, columns)
        if path.suffix in (".parquet", ".pq"):
            return _named(path, _columns(path, pq.read_table(path)))
    except (ValueError, OSError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); save it without Python objects") from error
    raise InputError(f"{path}: embeddings are read from .npy, .npz, .parquet and folders of kindred embed")


def load_labels(path: Path) -> NDArray[Any]:
    """Labels (N,) from `.npy`, or from a text file with one label in each line.

    Raises:
        InputError: the file is missing or unreadable.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of labels")
    try:
        if path.suffix == ".npy":
            labels: NDArray[Any] = np.load(path, allow_pickle=False)
            return labels
        return np.array(path.read_text(encoding="utf-8").splitlines())
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: labels cannot be read ({error})") from error


def _named(path: Path, columns: dict[str, NDArray[Any]]) -> SavedEmbeddings:
    vectors = next((name for name in VECTOR_NAMES if name in columns), None)
    if vectors is None:
        raise InputError(
            f"{path}: has {', '.join(columns) or 'nothing'}, but none of {', '.join(VECTOR_NAMES)}"
        )
    labels = next((name for name in LABEL_NAMES if name in columns), None)
    rest = {
        name: values for name, values in columns.items() if name not in (vectors, labels) and values.ndim == 1
    }
    return SavedEmbeddings(columns[vectors], None if labels is None else columns[labels], rest)


def _shard_columns(folder: Path) -> dict[str, NDArray[Any]]:
    batches = list(read_batches(folder, complete_plan(folder), SHARD_BATCH))
    # Ids are unique, so they cannot be slices.
    return _columns(folder, pa.Table.from_batches(batches).drop_columns(ID))


def _columns(path: Path, table: pa.Table) -> dict[str, NDArray[Any]]:
    return {name: _column(path, name, table.column(name).combine_chunks()) for name in table.column_names}


def _column(path: Path, name: str, column: Any) -> NDArray[Any]:
    if (
        pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
    ):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if column.null_count or len(np.unique(lengths)) != 1:
            raise InputError(f"{path}: rows of {name} have different lengths or are missing")
        values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), -1)
    plain: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return plain.astype(str) if plain.dtype == object else plain
