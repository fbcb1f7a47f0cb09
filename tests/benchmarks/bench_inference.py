"""Images a second of each backend and of a bundle's ONNX files, without decoding.

    python tests/benchmarks/bench_inference.py BUNDLE ... --save   # the first run compiles for minutes

Runs interleave, and the fastest of several calls counts. Compiled code and graphs are kept in the cache
folder, so only the first run compiles.
"""

import argparse
import json
from pathlib import Path

import torch

from models.bundle import Bundle
from models.errors import InputError
from models.inference import Model, versions
from models.inference.speed import machine, measure

BATCHES = (1, 8, 32)


class Plain:
    """The network as it was trained."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self._bundle.embed_tensor(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each row and batch size")
    parser.add_argument("--save", action="store_true", help="write docs/results/export/inference.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for folder in options.bundles:
        bundle = Bundle.load(folder, "cpu")
        runners = {"plain": Plain(bundle)}
        sizes = {"plain": (folder / "model.safetensors").stat().st_size}
        for backend in ("eager", "compiled", "onnx"):
            try:
                runners[backend] = bundle.optimize(backend).runner
            except InputError as error:
                print(error)
        for name, record in bundle.exports.items():
            if name.endswith(".onnx") and not record["input"]["normalization_inside"]:
                runners[name] = Bundle.load(folder / name, "cpu").runner
                sizes[name] = record["bytes"]
        model = Model(bundle.network, bundle.preprocess, bundle.fingerprint)
        speeds = measure(runners, model.samples(max(BATCHES)), BATCHES, options.seconds)
        about = f"{bundle.architecture.backbone}, {bundle.preprocess.size} px"
        for name, by_batch in speeds.items():
            row = {"model": about, "runs on": name, "bytes": sizes.get(name)}
            row["images_per_second"] = {str(size): round(speed) for size, speed in by_batch.items()}
            rows.append(row)
            print(row, flush=True)
    if options.save:
        target = Path(__file__).parents[2] / "docs/results/export/inference.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "command": f"python tests/benchmarks/bench_inference.py BUNDLE ... --threads {options.threads}"
        }
        head |= {"versions": versions(), **machine(torch.device("cpu"))}
        target.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
