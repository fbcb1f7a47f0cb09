"""k-reciprocal re-ranking (Zhong et al., 2017): items that share their mutual neighbours come first.

It uses all queries and the whole gallery, so its metrics are not those of a search for one image: report them
beside the plain ones. Distances are (1 - cosine) / 2; the paper also divides each column by its maximum.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.metrics.inputs import full_precision
from models.metrics.neighbours import NeighbourEngine

NEIGHBOURS, EXPANSION, PLAIN_WEIGHT = 20, 6, 0.3  # the paper's k1, k2 and lambda
AGREEMENT = 2 / 3  # share of a neighbour's neighbours that must be shared for them to be added
ROWS_AT_ONCE = 256

Array = np.ndarray[Any, Any]


class ReciprocalEngine(NeighbourEngine):
    """Ranks by a weighted sum of the Jaccard distance of mutual neighbourhoods and the plain distance."""

    preselects = False

    def __init__(self, *inputs: Any, **settings: Any) -> None:
        """See `NeighbourEngine`; the neighbourhoods take about a kilobyte per item besides the budget."""
        super().__init__(*inputs, **settings)
        items = torch.cat([self.gallery, self.queries]) if self.self_index is None else self.gallery
        self._encoded = _mutual_neighbours(*_nearest(items))
        self._columns = self._encoded[: self.size].tocsc()
        self._place = torch.arange(self.size, len(items)) if self.self_index is None else self.self_index

    def _double_similarity(self, rows: Tensor) -> Tensor:
        plain = super()._double_similarity(rows)
        overlap = np.zeros(plain.shape)
        for line, item in enumerate(self._place[rows.to(self._place.device)].tolist()):
            mine = self._encoded[item]
            for column, weight in zip(mine.indices, mine.data, strict=True):
                part = slice(self._columns.indptr[column], self._columns.indptr[column + 1])
                overlap[line, self._columns.indices[part]] += np.minimum(weight, self._columns.data[part])
        # Rows sum to one, so the union is 2 - overlap.
        jaccard = 1 - torch.from_numpy(overlap / (2 - overlap)).to(plain.device)
        return -(1 - PLAIN_WEIGHT) * jaccard - PLAIN_WEIGHT * (1 - plain) / 2


def _nearest(items: Tensor) -> tuple[Array, Array]:
    """Nearest items of each, with the item itself: int64 (N, k1 + 1), and their distances in [0, 1]."""
    count = min(NEIGHBOURS + 1, len(items))
    indices, distances = [], []
    for part in torch.split(items, ROWS_AT_ONCE):
        with full_precision(items.device):
            best = (part @ items.T).topk(count, dim=1)
        indices.append(best.indices.cpu())
        distances.append((1 - best.values.cpu()) / 2)
    return torch.cat(indices).numpy(), torch.cat(distances).numpy()


def _mutual_neighbours(nearest: Array, distance: Array) -> Any:
    """Sparse (N, N) matrix: each row has the weights of an item's expanded neighbourhood, with sum one."""
    # Slow to import, and only needed here.
    from scipy import sparse

    size = len(nearest)
    whole, half = _mutual(nearest), _mutual(nearest[:, : NEIGHBOURS // 2 + 1])
    rows, columns = [], []
    for item in range(size):
        members = whole[item]
        taken = [members]
        for other in members:
            theirs = half[other]
            if np.isin(theirs, members, assume_unique=True).sum() >= AGREEMENT * len(theirs):
                taken.append(theirs)
        union = np.unique(np.concatenate(taken))
        rows.append(np.full(len(union), item))
        columns.append(union)
    row, column = np.concatenate(rows), np.concatenate(columns)
    known = sparse.csr_matrix(
        (np.exp(-distance).ravel(), (np.repeat(np.arange(size), nearest.shape[1]), nearest.ravel())),
        shape=(size, size),
    )
    weight = np.asarray(known[row, column]).ravel()
    # Items added through a neighbour may not be among the nearest: they get the weight of the last of these.
    weight = np.where(weight > 0, weight, np.exp(-distance[row, -1]))
    encoded = sparse.csr_matrix((weight, (row, column)), shape=(size, size))
    encoded = sparse.diags(1 / np.asarray(encoded.sum(axis=1)).ravel()) @ encoded
    expansion = nearest[:, : min(EXPANSION, nearest.shape[1])]
    mean = sparse.csr_matrix(
        (
            np.full(expansion.size, 1 / expansion.shape[1]),
            (np.repeat(np.arange(size), expansion.shape[1]), expansion.ravel()),
        ),
        shape=(size, size),
    )
    return (mean @ encoded).tocsr()


def _mutual(nearest: Array) -> list[Array]:
    """For each item, those of its nearest that also have it among their nearest, with the item itself."""
    size, count = nearest.shape
    pairs = np.repeat(np.arange(size), count) * size + nearest.ravel()
    back = nearest.ravel() * size + np.repeat(np.arange(size), count)
    mutual = np.isin(back, pairs).reshape(size, count)
    mutual |= nearest == np.arange(size)[:, None]
    return [
        row[keep] if keep.any() else np.array([item])
        for item, (row, keep) in enumerate(zip(nearest, mutual, strict=True))
    ]
