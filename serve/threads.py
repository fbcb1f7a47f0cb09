"""Thread counts of OpenMP, BLAS and torch: set once, and checked.

FAISS and torch each count threads *per calling thread*, so a count set at start does not hold in worker
threads made later: every worker calls :func:`enter_worker` first.
"""

import sys

import faiss
import torch

# Seconds after which a waiting thread gets the interpreter's lock. With Python's 5 ms, the event loop would
# answer in bursts while images are decoded.
SWITCH_SECONDS = 0.0005


def set_policy(network_threads: int) -> None:
    """Set the process's thread counts; call once, before the first search or forward pass."""
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(network_threads)
    faiss.omp_set_num_threads(1)


def enter_worker(threads: int = 1) -> None:
    """Fix the thread count of FAISS for the calling thread, and check that it holds.

    Raises:
        RuntimeError: The count did not take, which would oversubscribe the cores under load.
    """
    faiss.omp_set_num_threads(threads)
    if faiss.omp_get_max_threads() != threads:
        raise RuntimeError(f"OpenMP gives {faiss.omp_get_max_threads()} threads where {threads} were set")
