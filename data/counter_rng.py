"""Random numbers by counter: the n-th number of a stream depends on its key and n alone.

So what happens to a draw does not depend on which worker, process or batch position handles it, and any
point of a run can be reached again without replaying what came before.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = np.arange(1, 5, dtype=np.uint64) * _GOLDEN


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words that looks
    random.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive(*parts: ArrayLike) -> NDArray[np.uint64]:
    """One key from several integers, broadcast against each other; the order of the parts matters."""
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
    """Where a key's random permutation of 0 … length − 1 sends a position, without building the permutation.

    A four-round Feistel network on the smallest even number of bits that holds ``length``, walked until
    the result falls inside (Black and Rogaway, CT-RSA 2002): at most 4 steps in expectation.

    Args:
        position: In 0 … length − 1, int64 of any shape S.
        length: At least 1, shape S.
        keys: Shape S; equal keys and lengths are the same permutation.
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
