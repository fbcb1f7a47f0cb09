"""FaceNet's semi-hard triplet mining (Schroff et al. 2015), in O(B² log B) time and O(B²) memory."""

from typing import Any

import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]


class SemiHardMiner(BaseMiner):  # type: ignore[misc]  # the library ships no types
    """One triplet for each anchor-positive pair: the nearest negative that is farther than the positive.

    Where no negative is farther than the positive, the farthest negative is taken. Equal distances are
    ordered by index, the smallest first. It can stand wherever a pytorch-metric-learning miner stands, which
    (its ``TripletMarginMiner(type_of_triplets="semihard")``) returns *all* semi-hard triplets instead,
    through a mask of B³ elements.

    Args:
        distance: by default the squared Euclidean distance between normalised embeddings. The default
            distance is computed in float32 (or the embeddings' wider type).

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
            negative give nothing.
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

    Sorting each anchor's negatives once makes every positive's answer a binary search in its row.

    Args:
        distances: (B, M), from anchors to references; smaller is nearer.
        positives: bool (B, M), which references are positives of the anchor.
        negatives: bool (B, M), which are negatives.

    Returns:
        As :meth:`SemiHardMiner.mine`.
    """
    count = negatives.sum(1)
    anchors, at = torch.nonzero(positives & (count > 0)[:, None], as_tuple=True)
    if len(anchors) == 0:
        return anchors, at, at.clone()
    # Stable, so that equal distances stay in the order of their indices. NaN and infinity sort after all
    # numbers, as the masked entries do; a diverged run is the loss's to report, here the indices only have
    # to stay negatives.
    finite = torch.nan_to_num(
        distances, nan=torch.finfo(distances.dtype).max, posinf=torch.finfo(distances.dtype).max
    )
    values, order = finite.masked_fill(~negatives, torch.inf).sort(dim=1, stable=True)
    # One row of queries an anchor, as wide as the largest number of positives.
    number = positives.sum(1)[anchors]
    start = torch.nn.functional.pad(
        torch.unique_consecutive(anchors, return_counts=True)[1].cumsum(0), (1, 0)
    )[:-1]
    row = torch.unique_consecutive(anchors, return_inverse=True)[1]
    column = torch.arange(len(anchors), device=anchors.device) - start[row]
    queries = values.new_zeros(len(distances), int(number.max()) + 1)
    queries[anchors, column] = finite[anchors, at]
    farthest = values.gather(1, (count - 1).clamp_min(0)[:, None])
    place = torch.searchsorted(values, queries, right=True)[anchors, column]
    last = torch.searchsorted(values, farthest, right=False)[anchors, 0]
    place = torch.where(place < count[anchors], place, last)
    return anchors, at, order[anchors, place]
