"""FaceNet's semi-hard triplet mining (Schroff et al. 2015), in O(B² log B) time and O(B²) memory."""

from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]

# Up to so many positives per anchor, passes over the distances are faster than sorting, above all on CPUs.
SCANS = 24


class SemiHardMiner(BaseMiner):  # type: ignore[misc]  # the library ships no types
    """One triplet for each anchor-positive pair: the nearest negative that is farther than the positive.

    Where no negative is farther than the positive, the farthest negative is taken. Ties go to the smallest
    index. It can be used wherever a pytorch-metric-learning miner can. The library's own
    ``TripletMarginMiner(type_of_triplets="semihard")`` returns *all* semi-hard triplets, through a mask of B³
    elements.

    Args:
        distance: by default the squared Euclidean distance between normalized embeddings, computed in float32
            or the embeddings' wider type.
        **kwargs: as for the library's ``BaseMiner``.

    Example: distances from the anchor to its positives 0.3 and 0.9 and to the negatives 0.2, 0.5, 0.5, 0.8
    give the first 0.5 for the first positive, and 0.8, the farthest, for the second.
    """

    def __init__(self, distance: BaseDistance | None = None, **kwargs: Any) -> None:
        super().__init__(distance=distance or LpDistance(normalize_embeddings=True, p=2, power=2), **kwargs)
        self.plain_distance = distance is None

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Triplets:
        """Mine one batch.

        Args:
            embeddings: (B, D), the anchors.
            labels: int (B,).
            ref_emb: (M, D), positives and negatives; the same tensor as `embeddings` within one batch.
            ref_labels: int (M,).

        Returns:
            Indices of anchors (into B), positives and negatives (into M), int64 (T,) each, ordered by
            anchor, then positive. An item is never its own positive. Anchors without a positive or a
            negative have no triplet.
        """
        distances = self._distances(embeddings, ref_emb)
        same = labels[:, None] == ref_labels[None, :]
        positives = same
        if ref_emb is embeddings or (ref_emb.shape == embeddings.shape and torch.equal(ref_emb, embeddings)):
            positives = same.clone().fill_diagonal_(False)
        return semi_hard_triplets(distances, positives, ~same)

    def _distances(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        if not self.plain_distance:
            matrix: Tensor = self.distance(embeddings, ref_emb)
            return -matrix if self.distance.is_inverted else matrix
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            anchors = torch.nn.functional.normalize(embeddings.to(wide), dim=1)
            others = torch.nn.functional.normalize(ref_emb.to(wide), dim=1)
            return (anchors @ others.T).mul_(-2).add_(2)


def semi_hard_triplets(distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
    """FaceNet's rule on a matrix of distances.

    With many positives per anchor, the negatives are sorted once and searched once for each positive. With
    few, one pass over the matrix for each positive is faster than sorting.

    Args:
        distances: (B, M), from anchors to references; smaller is nearer.
        positives: bool (B, M), which references are positives of the anchor.
        negatives: bool (B, M), which are negatives.

    Returns:
        As :meth:`SemiHardMiner.mine`.
    """
    possible = negatives.any(1)
    anchors, at = torch.nonzero(positives & possible[:, None], as_tuple=True)
    if len(anchors) == 0:
        return anchors, at, at.clone()
    # NaN and infinity sort after all numbers and before masked entries, so that the results are negatives
    # even in a diverged run; the loss then shows the divergence.
    largest = torch.finfo(distances.dtype).max
    finite = torch.nan_to_num(distances.detach(), nan=largest, posinf=largest, neginf=-largest / 4)
    # One row of queries for each anchor, as wide as the largest number of positives.
    before = positives.sum(1).mul_(possible).cumsum(0)
    start = torch.nn.functional.pad(before, (1, 0))[:-1]
    column = torch.arange(len(anchors), device=anchors.device) - start[anchors]
    queries = finite.new_zeros(len(distances), int(column.max()) + 1)
    queries[anchors, column] = finite[anchors, at]
    others = finite.masked_fill_(~negatives, torch.inf)
    search = _by_scanning if queries.shape[1] <= SCANS else _by_sorting
    return anchors, at, search(others, queries)[anchors, column]


def _by_scanning(others: Tensor, queries: Tensor) -> Tensor:
    """One pass over the distances for each column of queries; see :func:`_by_sorting`."""
    found = []
    largest = torch.finfo(others.dtype).max
    buffer = torch.empty_like(others)
    for query in queries.T:
        # Move negatives that are not farther behind all others; arithmetic is three times as fast as a mask.
        moved = torch.le(others, query[:, None], out=buffer).mul_(largest).add_(others)
        nearest = moved.min(1)
        found.append(torch.where(nearest.values >= largest / 2, -1, nearest.indices))
    chosen = torch.stack(found, dim=1)
    lacking = torch.nonzero((chosen < 0).any(1)).flatten()
    if len(lacking):
        rows = others[lacking]
        farthest = rows.masked_fill_(rows == torch.inf, -torch.inf).max(1).indices
        chosen[lacking] = torch.where(chosen[lacking] < 0, farthest[:, None], chosen[lacking])
    return chosen


def _by_sorting(others: Tensor, queries: Tensor) -> Tensor:
    """The nearest reference farther than each query, or else the farthest; ties go to the smallest.

    Args:
        others: (B, M), distances to negatives, infinite for all other references.
        queries: (B, P), distances to positives.

    Returns:
        int64 (B, P), positions along M. Arbitrary where a row has no negative.
    """
    count = (others < torch.inf).sum(1, keepdim=True)
    # Stable, so that equal distances stay in the order of their indices.
    values, order = others.sort(dim=1, stable=True)
    farthest = values.gather(1, (count - 1).clamp_min(0))
    place = torch.searchsorted(values, queries, right=True)
    last = torch.searchsorted(values, farthest, right=False)
    return order.gather(1, torch.where(place < count, place, last).clamp_max(others.shape[1] - 1))
