"""N-way K-shot accuracy: episodes in which items are recognised among N classes with K examples each."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import InputError
from models.metrics.inputs import Labels, as_codes, as_unit_vectors

EPISODES_AT_ONCE = 256
TIE = 1e-6


@dataclass(frozen=True)
class FewShot:
    """A protocol.

    Attributes:
        n_way: classes in an episode.
        shots: examples of each class.
        episodes: how many are drawn.
        queries: items of each class that are recognised in an episode.
        within: name of the groups that an episode's classes are drawn from (one group an episode); None
            where they are drawn from all classes.
    """

    n_way: int = 20
    shots: int = 1
    episodes: int = 1000
    queries: int = 1
    within: str | None = None

    @property
    def name(self) -> str:
        """What tables and conditions call the accuracy, such as `accuracy@20-way-1-shot/alphabet`."""
        return f"accuracy@{self.n_way}-way-{self.shots}-shot" + (f"/{self.within}" if self.within else "")


@dataclass(frozen=True)
class Episodes:
    """Rows of the items in each episode; the n-th class of an episode is the n-th row of both.

    Attributes:
        support: int64 (episodes, n_way, shots).
        query: int64 (episodes, n_way, queries).
    """

    support: NDArray[np.int64]
    query: NDArray[np.int64]


def draw_episodes(
    labels: Labels, protocol: FewShot, groups: NDArray[np.generic] | None = None, seed: int = 0
) -> Episodes:
    """Draws episodes: a group (each equally likely), N of its classes, and their items, without replacement.

    Classes with fewer items than shots and queries are left out, and so are groups with fewer than N
    classes.

    Args:
        labels: (N,) integers or strings.
        protocol: what to draw.
        groups: (N,) group of each item, for `protocol.within`.
        seed: of the draws.

    Raises:
        InputError: numbers below one, a class in two groups, or no N classes of sufficient size.
    """
    for name in ("shots", "episodes", "queries"):
        if getattr(protocol, name) < 1:
            raise InputError(f"few-shot accuracy: {name} is {getattr(protocol, name)}; at least 1 is needed")
    if protocol.n_way < 2:
        raise InputError(f"few-shot accuracy: n_way is {protocol.n_way}; at least 2 classes are needed")
    codes = np.unique(as_codes(labels, len(labels)), return_inverse=True)[1]
    each = protocol.shots + protocol.queries
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    large = np.array([len(rows) >= each for rows in members])
    pools = [np.flatnonzero(large & chosen) for chosen in _groups(members, groups)]
    pools = [pool for pool in pools if len(pool) >= protocol.n_way]
    if not pools:
        where = f" in any {protocol.within}" if protocol.within else ""
        raise InputError(
            f"few-shot accuracy: fewer than {protocol.n_way} classes of {each} images{where}; "
            "lower --n-way, --shots or --episode-queries"
        )
    rng = np.random.default_rng(seed)
    drawn = np.empty((protocol.episodes, protocol.n_way, each), dtype=np.int64)
    for episode in drawn:
        pool = pools[rng.integers(len(pools))]
        for row, label in enumerate(rng.choice(pool, protocol.n_way, replace=False)):
            episode[row] = rng.choice(members[label], each, replace=False)
    return Episodes(drawn[:, :, : protocol.shots], drawn[:, :, protocol.shots :])


def _groups(members: list[NDArray[np.int64]], groups: NDArray[np.generic] | None) -> list[NDArray[np.bool_]]:
    """For each group, bool (classes,): which classes it has."""
    if groups is None:
        return [np.ones(len(members), dtype=bool)]
    codes = np.unique(groups, return_inverse=True)[1]
    first = np.array([codes[rows[0]] for rows in members])
    for rows, group in zip(members, first, strict=True):
        if (codes[rows] != group).any():
            raise InputError(
                "few-shot accuracy: a class lies in two groups; group by a column of the classes"
            )
    return [first == group for group in range(codes.max() + 1)]


def episode_accuracies(embeddings: Tensor, episodes: Episodes) -> Tensor:
    """Accuracy of each episode: the fraction of queries whose own class has the most similar examples.

    A class is represented by the mean of its examples' unit vectors, scaled to length one (one example: by
    itself), and compared by cosine similarity. A query tied with another class
    (within 10⁻⁶, what float32 vectors can tell) counts as wrong, so that a collapsed network has accuracy 0.

    Args:
        embeddings: float (N, dim), scaled to length one here.
        episodes: rows of it.

    Returns:
        float64 (episodes,).
    """
    vectors = as_unit_vectors(embeddings)
    support, query = torch.from_numpy(episodes.support), torch.from_numpy(episodes.query)
    accuracies = []
    for some, asked in zip(
        torch.split(support, EPISODES_AT_ONCE), torch.split(query, EPISODES_AT_ONCE), strict=True
    ):
        classes = vectors[some.to(vectors.device)].double().mean(dim=2)
        classes = torch.nn.functional.normalize(classes, dim=2)
        queries = vectors[asked.to(vectors.device)].double()
        similarity = torch.einsum("ewqd,evd->ewqv", queries, classes)
        own = similarity.diagonal(dim1=1, dim2=3).transpose(1, 2)  # (episodes, n_way, queries)
        better_or_tied = (similarity > own.unsqueeze(3) - TIE).sum(dim=3)
        accuracies.append((better_or_tied == 1).double().mean(dim=(1, 2)).cpu())  # 1: the class itself
    return torch.cat(accuracies)


def few_shot_accuracy(
    embeddings: Tensor,
    labels: Labels,
    protocol: FewShot,
    groups: NDArray[np.generic] | None = None,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over seeded episodes, and its 95% interval.

    The interval, mean ± 1.96 standard errors over episodes, is the one usual in publications: it says how
    well the mean over all possible episodes *of these classes* is known, not how other classes would do.

    Args:
        embeddings: float (N, dim).
        labels: (N,) integers or strings.
        protocol: see `FewShot`.
        groups: (N,) group of each item, for `protocol.within`.
        seed: the same seed draws the same episodes for every model.

    Returns:
        The accuracy and (low, high).

    Raises:
        InputError: see `draw_episodes`.
    """
    accuracies = episode_accuracies(embeddings, draw_episodes(labels, protocol, groups, seed))
    mean = float(accuracies.mean())
    spread = 1.96 * float(accuracies.std(correction=0)) / len(accuracies) ** 0.5
    return mean, (max(0.0, mean - spread), min(1.0, mean + spread))
