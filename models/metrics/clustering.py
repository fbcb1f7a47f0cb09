"""NMI and AMI: agreement of k-means clusters of the embeddings with the classes."""

from typing import Any

from models.errors import InputError
from models.metrics.inputs import Labels, as_codes, as_unit_vectors, same_codes


def clustering_metrics(embeddings: Any, labels: Labels, *, seed: int = 0) -> dict[str, float]:
    """Cluster unit vectors by k-means, into as many clusters as there are classes. This is slow.

    Args:
        embeddings: (N, dim).
        labels: (N,) integers or strings.
        seed: of k-means.

    Returns:
        `nmi` (arithmetic normalization) and `ami`, which is corrected for chance and so comparable across
        numbers of classes.

    Raises:
        InputError: unusable vectors or labels.
    """
    # Slow to import, and only needed here.
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    vectors = as_unit_vectors(embeddings).cpu().numpy()
    codes = same_codes(as_codes(labels, len(vectors)))[0].numpy()
    if len(vectors) < 2:
        raise InputError("clustering needs at least two items")
    clusters = KMeans(int(codes.max()) + 1, n_init=1, random_state=seed).fit_predict(vectors)
    return {
        "nmi": float(normalized_mutual_info_score(codes, clusters)),
        "ami": float(adjusted_mutual_info_score(codes, clusters)),
    }
