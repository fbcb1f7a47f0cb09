"""N-way K-shot accuracy: items are classified among N classes with K examples each."""

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
    """A few-shot protocol.

    Attributes:
        n_way: number of classes in an episode.
        shots: number of examples of each class.
        episodes: number of episodes.
        queries: number of items of each class to classify in an episode.
        within: name of the groups, where all classes of an episode come from one group; None draws from all
            classes.
    """

    n_way: int = 20
    shots: int = 1
    episodes: int = 1000
    queries: int = 1
    within: str | None = None

    @property
    def name(self) -> str:
        """Name of the accuracy in tables and conditions, such as `accuracy@20-way-1-shot/alphabet`."""
        return f"accuracy@{self.n_way}-way-{self.shots}-shot" + (f"/{self.within}" if self.within else "")


def draw_episodes(
    labels: Labels, protocol: FewShot, groups: NDArray[np.generic] | None = None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw episodes: a group (uniformly), N of its classes, and items of each, without replacement.

    Classes with fewer items than shots and queries are left out, and so are groups with fewer than N
    classes. Arguments as of `few_shot_accuracy`.

    Returns:
        Rows of the examples, int64 (episodes, n_way, shots), and of the items to classify, int64 (episodes,
        n_way, queries); the n-th class of an episode is the n-th row of both.

    Raises:
        InputError: numbers below one, a class in two groups, or fewer than N classes of sufficient size.
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
    return drawn[:, :, : protocol.shots], drawn[:, :, protocol.shots :]


def _groups(members: list[NDArray[np.int64]], groups: NDArray[np.generic] | None) -> list[NDArray[np.bool_]]:
    """For each group, bool (classes,): which classes are in it."""
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


def episode_accuracies(embeddings: Tensor, support: NDArray[np.int64], query: NDArray[np.int64]) -> Tensor:
    """Accuracy of each episode, float64 (episodes,): how often the own class has the most similar examples.

    A class is represented by the normalized mean of its examples' unit vectors, and compared by cosine
    similarity. A tie with another class (within 10⁻⁶, the resolution of float32 vectors) counts as wrong, so
    that a collapsed network has accuracy 0.

    Args:
        embeddings: float (N, dim), normalized here.
        support: rows of it, as `draw_episodes` returns them.
        query: likewise.
    """
    vectors = as_unit_vectors(embeddings)
    accuracies = []
    for start in range(0, len(support), EPISODES_AT_ONCE):
        some, asked = (torch.from_numpy(rows[start : start + EPISODES_AT_ONCE]) for rows in (support, query))
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

    The interval, mean ± 1.96 standard errors over episodes, is the usual one in publications: it covers the
    choice of episodes *of these classes*, not the choice of classes.

    Args:
        embeddings: float (N, dim).
        labels: (N,) integers or strings.
        protocol: the protocol.
        groups: (N,) group of each item, for `protocol.within`.
        seed: the same seed draws the same episodes for every model.

    Returns:
        The accuracy and (low, high).

    Raises:
        InputError: see `draw_episodes`.
    """
    accuracies = episode_accuracies(embeddings, *draw_episodes(labels, protocol, groups, seed))
    mean = float(accuracies.mean())
    spread = 1.96 * float(accuracies.std(correction=0)) / len(accuracies) ** 0.5
    return mean, (max(0.0, mean - spread), min(1.0, mean + spread))
