"""Counter-based random numbers: the n-th number of a stream depends only on its key and n.

So a draw does not depend on the worker, process or batch position that makes it, and a run can resume at any
point without replaying earlier draws.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = np.arange(1, 5, dtype=np.uint64) * _GOLDEN


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, a pseudo-random bijection of 64-bit words (Steele et al., OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Keys, uint64, from several integers, which are broadcast; the order of the parts matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mix((key + np.asarray(part).astype(np.int64).astype(np.uint64)) * _GOLDEN + _GOLDEN)
    return key.reshape(np.broadcast_shapes(*(np.shape(part) for part in parts)))


def uniform(keys: NDArray[np.uint64], count: int) -> NDArray[np.float32]:
    """``count`` numbers in [0, 1) for each key, float32 of shape (*keys.shape, count)."""
    counter = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = mix(keys[..., None] + counter)
    return ((words >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def permuted(
    position: NDArray[np.int64], length: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The image of a position under a key's random permutation of 0 … length − 1, without building it.

    A four-round Feistel network on the smallest even number of bits that holds ``length``, iterated until the
    result is below ``length`` (Black and Rogaway, CT-RSA 2002): at most 4 steps in expectation.

    Args:
        position: In 0 … length − 1, int64 of any shape S.
        length: At least 1, int64 of shape S.
        keys: uint64 of shape S; equal keys and lengths give the same permutation.

    Returns:
        int64 of shape S.
    """
    bits = np.ceil(np.log2(np.maximum(length, 2))).astype(np.int64)
    half = ((bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = [mix(keys + offset).ravel() for offset in _ROUNDS]
    result = position.astype(np.uint64)
    limit = length.astype(np.uint64)
    active = np.arange(result.size)
    flat, half, mask, limit = result.ravel(), half.ravel(), mask.ravel(), limit.ravel()
    while active.size:
        left, right = flat[active] >> half[active], flat[active] & mask[active]
        for key in rounds:
            left, right = right, left ^ (mix(key[active] + right) & mask[active])
        flat[active] = (left << half[active]) | right
        active = active[flat[active] >= limit[active]]
    return flat.reshape(position.shape).astype(np.int64)
