"""The exact neighbour engine: ranks a gallery for every query, block by block, within a memory budget.

Similarity is cosine. The ranking is that of double-precision similarities of the fp32 vectors, whatever the
block size, the thread count or the device; fp32 matrix products only preselect candidates:

1. One fp32 product gives the similarities of a block of queries to the whole gallery. Its error is at most
   `d * 2**-24` for unit vectors of dimension d (in any order of summation), so two similarities further apart
   than twice that are in their true order.
2. The `k` best of a row are found through the maxima of short chunks of the row, which reads memory once
   where a general top-k would sort. A few more than k are taken (`SPARE`).
3. Rows in which a match and a non-match lie closer than that bound are rescored in double precision over the
   candidates; rows whose spare candidates all lie within the bound of the k-th are ranked in double precision
   over the whole gallery.

Ties: similarities within `TIE` (the rounding of double precision, so identical vectors always tie) are equal,
and a non-match ranks before a match that it is tied with. Recall is thus a lower bound that does not depend
on the order of duplicates. A query is excluded from its own ranking by its index, not by its rank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import InputError
from models.metrics.inputs import Relevance, full_precision

TIE = 1e-12
SPARE = 8
CHUNK = 64
DENSE_FROM = 1 / 64  # share of the gallery per query above which double precision throughout is cheaper
MOST_ROWS = 1024  # larger blocks do not make the product faster
COLUMNS_AT_ONCE = 8192
RESCORE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Ranking:
    """The best gallery items of a block of queries.

    Attributes:
        rows: int64 (B,), numbers of the queries.
        index: int64 (B, k), gallery items, best first; the order of items of equal relevance within the error
            of fp32 is arbitrary.
        similarity: float64 (B, k), cosine similarities, at least as accurate as fp32.
        hits: bool (B, k), whether each is relevant.
        tied: bool (B,), whether the order of `hits` depends on how ties are resolved.
    """

    rows: Tensor
    index: Tensor
    similarity: Tensor
    hits: Tensor
    tied: Tensor


class NeighbourEngine:
    """Exact rankings of one gallery for many queries."""

    preselects = True  # whether fp32 inner products approximate `_double_similarity`

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        relevance: Relevance,
        *,
        self_index: Tensor | None,
        memory_budget: int,
    ) -> None:
        """Prepare a search.

        Args:
            queries: float32 (Q, d) unit vectors.
            gallery: float32 (N, d) unit vectors on the same device.
            relevance: which gallery items match which queries.
            self_index: int64 (Q,), each query's position in the gallery, excluded from its ranking; None
                where queries and gallery are separate.
            memory_budget: bytes of working memory besides the vectors.

        Raises:
            InputError: dimensions differ, the gallery has nothing to rank, or the budget is below one row.
        """
        if queries.shape[1] != gallery.shape[1]:
            raise InputError(
                f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}; use one model"
            )
        self.queries, self.gallery, self.relevance, self.self_index = queries, gallery, relevance, self_index
        self.size, dim = gallery.shape
        self.depth_limit = self.size - (self_index is not None)
        if self.depth_limit < 1:
            raise InputError("the gallery holds nothing besides the query itself; give at least two items")
        self.tie = max(TIE, 8 * dim * 2.0**-53)
        self.fp32_error = 2 * (dim + 8) * 2.0**-24
        self.budget = memory_budget - RESCORE_BYTES
        if self._rows_within(self._dense_bytes()) < 1:
            need = (self._dense_bytes() + RESCORE_BYTES) / 2**20
            raise InputError(
                f"memory_budget is too small for a gallery of {self.size}; give at least {need:.0f} MiB"
            )
        self._buffer: Tensor | None = None

    def rank(self, rows: Tensor, depths: Tensor) -> Iterator[Ranking]:
        """Rank the gallery for some queries, those with the deepest rankings first.

        Args:
            rows: int64 (B,), numbers of the queries.
            depths: int64 (B,), minimum number of neighbours of each; a block has that of its deepest query.

        Yields:
            Rankings that together hold every row once.
        """
        order = torch.argsort(depths, descending=True, stable=True)
        rows, depths = rows[order], depths[order]
        start = 0
        while start < len(rows):
            depth = min(int(depths[start]), self.depth_limit)
            select = self.preselects and depth + 1 + SPARE <= DENSE_FROM * self.size
            count = self._rows_within(self._select_bytes(depth) if select else self._dense_bytes())
            block = rows[start : start + max(1, count)]
            yield self._select(block, depth) if select else self._dense(block, depth)
            start += len(block)

    def first_match_rank(self, rows: Tensor) -> Tensor:
        """Rank, from 1, of the first relevant item in the whole gallery, for queries that have one: (B,)."""
        ranks = []
        for part in torch.split(rows, max(1, self._rows_within(self._dense_bytes()))):
            similarity = self._double_similarity(part)
            match = self.relevance.match(part)
            best = similarity.masked_fill(~match, -math.inf).amax(dim=1, keepdim=True)
            ranks.append(1 + ((similarity >= best - self.tie) & ~match).sum(dim=1))
        return torch.cat(ranks) if ranks else rows

    def _rows_within(self, bytes_per_row: int) -> int:
        return min(MOST_ROWS, self.budget // bytes_per_row)

    def _dense_bytes(self) -> int:
        return self.size * (8 * 3 + 2) + self.queries.shape[1] * 8 + COLUMNS_AT_ONCE * 8

    def _select_bytes(self, depth: int) -> int:
        candidates = depth + 1 + SPARE
        return 4 * self.size + 8 * (self.size // CHUNK + CHUNK) + candidates * (CHUNK * 12 * 2 + 96)

    def _dense(self, rows: Tensor, depth: int) -> Ranking:
        """Rank in double precision over the whole gallery."""
        similarity = self._double_similarity(rows)
        match = self.relevance.match(rows)
        key = similarity - self.tie * match
        index = key.topk(depth, dim=1).indices
        hits = match.gather(1, index)
        torch.add(similarity, match, alpha=self.tie, out=key)
        optimistic = match.gather(1, key.topk(depth, dim=1).indices)
        return Ranking(rows, index, similarity.gather(1, index), hits, (hits != optimistic).any(dim=1))

    def _double_similarity(self, rows: Tensor) -> Tensor:
        """Float64 (B, N); the query itself at minus infinity."""
        query = self.queries[rows].double()
        similarity = query.new_empty(len(rows), self.size)
        for start in range(0, self.size, COLUMNS_AT_ONCE):
            part = self.gallery[start : start + COLUMNS_AT_ONCE]
            similarity[:, start : start + len(part)] = query @ part.double().T
        if self.self_index is not None:
            similarity.scatter_(1, self.self_index[rows, None], -math.inf)
        return similarity

    def _select(self, rows: Tensor, depth: int) -> Ranking:
        """Rank by fp32 preselection, and in double precision where the order is uncertain."""
        candidates = depth + 1 + SPARE
        values, index = self._best(self._single_similarity(rows), candidates)
        least = values[:, -1]  # nothing outside the candidates is above it
        if self.self_index is not None:
            values = values.masked_fill(index == self.self_index[rows, None], -math.inf)
            values, order = values.sort(dim=1, descending=True)
            index = index.gather(1, order)
        hits = self.relevance.match(rows, index)
        crowded = least >= values[:, depth - 1] - self.fp32_error
        close = values[:, :-1] - values[:, 1:] <= self.fp32_error
        unsure = (close & (hits[:, :-1] != hits[:, 1:])).any(dim=1) & ~crowded

        result = Ranking(
            rows, index[:, :depth], values[:, :depth].double(), hits[:, :depth], torch.zeros_like(crowded)
        )
        together = max(1, RESCORE_BYTES // (candidates * self.queries.shape[1] * 12))
        for part in torch.split(unsure.nonzero().flatten(), together):
            _put(result, part, self._rescore(rows[part], index[part], hits[part], depth))
        for part in torch.split(crowded.nonzero().flatten(), max(1, self._rows_within(self._dense_bytes()))):
            self._buffer = None  # the double precision rows need its share of the budget
            _put(result, part, self._dense(rows[part], depth))
        return result

    def _single_similarity(self, rows: Tensor) -> Tensor:
        """Float32 (B, chunks * CHUNK), minus infinity past the gallery; one buffer for all blocks."""
        width = -(-self.size // CHUNK) * CHUNK
        if self._buffer is None or self._buffer.numel() < len(rows) * width:
            self._buffer = self.queries.new_empty(len(rows) * width)
        similarity = self._buffer[: len(rows) * width].view(len(rows), width)
        similarity[:, self.size :] = -math.inf
        with full_precision(self.queries.device):
            torch.mm(self.queries[rows], self.gallery.T, out=similarity[:, : self.size])
        return similarity

    @staticmethod
    def _best(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Top-k of every row: the k best lie in the k chunks with the largest maxima."""
        chunks = similarity.view(len(similarity), -1, CHUNK)
        if count >= chunks.shape[1]:
            best = similarity.topk(count, dim=1)
            return best.values, best.indices
        chosen = chunks.amax(dim=2).topk(count, dim=1).indices
        columns = (chosen[:, :, None] * CHUNK + torch.arange(CHUNK, device=chosen.device)).flatten(1)
        best = similarity.gather(1, columns).topk(count, dim=1)
        return best.values, columns.gather(1, best.indices)

    def _rescore(self, rows: Tensor, index: Tensor, hits: Tensor, depth: int) -> Ranking:
        """Rank candidates (B, C) in double precision."""
        vectors = self.gallery[index].double()
        similarity = (vectors @ self.queries[rows].double()[:, :, None]).squeeze(2)
        if self.self_index is not None:
            similarity.masked_fill_(index == self.self_index[rows, None], -math.inf)
        order = (similarity - self.tie * hits).argsort(dim=1, descending=True)[:, :depth]
        optimistic = hits.gather(1, (similarity + self.tie * hits).argsort(dim=1, descending=True)[:, :depth])
        hits = hits.gather(1, order)
        tied = (hits != optimistic).any(dim=1)
        return Ranking(rows, index.gather(1, order), similarity.gather(1, order), hits, tied)


def _put(target: Ranking, at: Tensor, part: Ranking) -> None:
    for name in ("index", "similarity", "hits", "tied"):
        getattr(target, name)[at] = getattr(part, name)
