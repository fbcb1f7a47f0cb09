"""The compiled backend: torch's Inductor, ahead of time.

``torch.compile`` compiles in the running process. Its ahead-of-time form (AOTInductor) writes a file that the
next process loads quickly, so that a server starts fast.
"""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import first_line
from models.inference.runner import Unavailable, folded

MAX_BATCH = 4096


class CompiledRunner:
    """Runs a package that :func:`compile_network` wrote; ``runners`` is how many batches may run at a time.

    The package is machine code that runs in this process: load only packages that the same user compiled.
    """

    name = "compiled"
    takes_pixels = False

    def __init__(self, package: Path, runners: int = 1) -> None:
        try:
            self._run = torch._inductor.aoti_load_package(str(package), num_runners=runners)
        except (RuntimeError, OSError) as error:
            raise Unavailable(f"the compiled network cannot be loaded ({first_line(error)})") from error

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See :class:`models.inference.runner.Runner`."""
        vectors: Tensor = self._run(batch.contiguous(memory_format=torch.channels_last))
        return vectors


def compile_network(network: nn.Module, example: Tensor, package: Path) -> None:
    """Compile for this processor and torch's current number of threads; this may take minutes.

    Args:
        network: in evaluation mode, on the device where it is to run.
        example: its input, float32 (2 or more, C, H, W), on that device.
        package: file to write.

    Raises:
        Unavailable: there is no C++ compiler, or the network cannot be compiled.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise Unavailable("needs a C++ compiler: install g++")
    from torch.export import Dim, export

    example = example.contiguous(memory_format=torch.channels_last)
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        tempfile.TemporaryDirectory(dir=package.parent) as folder,
    ):
        warnings.simplefilter("ignore")
        try:
            batch = Dim("batch", min=1, max=MAX_BATCH)
            program = export(folded(network), (example,), dynamic_shapes=({0: batch},))
            fresh = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "network.pt2")
            )
            Path(fresh).replace(package)
        except Exception as error:
            raise Unavailable(f"the network cannot be compiled ({first_line(error)})") from error
