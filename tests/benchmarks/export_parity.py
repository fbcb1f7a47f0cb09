"""ONNX and torch.export beside the plain network, for several backbones on real images.

    python tests/benchmarks/export_parity.py omniglot grocery.zip --save   # about ten minutes on two cores

Weights are random and the running statistics those of training images. The similarity between different
images is printed too: were it 1, the network would give one vector for all, and any graph would agree. Each
export goes through `kindred export`, which refuses one that differs by more than 1e-4.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from app.commands.export import export
from app.export.comparison_images import pixels_of
from models.bundle import Bundle
from models.inference import versions
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess

SIZES = {"resnet10": 64, "resnet18": 64, "inception_v3": 96}  # Inception takes no image under 75 pixels
BATCHES, BATCH, PASSES = 4, 24, 12


def bundle_with_statistics(backbone: str, data: str, mode: str) -> Bundle:
    """A network whose running statistics have seen training images."""
    torch.manual_seed(0)
    given = Preprocess(size=SIZES[backbone], mode=mode)
    # Averages over the last ten batches or so: enough to settle in the passes below.
    renorm = {"momentum": 0.1}
    architecture = Architecture(backbone=backbone, normalization_args=renorm, in_channels=given.channels)
    bundle = Bundle(EmbeddingNetwork(architecture), architecture, given)
    pixels = pixels_of(bundle, data, "train", BATCHES * BATCH, seed=0).values
    bundle.network.train()
    with torch.no_grad():
        for _ in range(PASSES):
            for batch in torch.split(pixels, BATCH):
                bundle.network(given.normalize(batch))
    return Bundle(bundle.network, architecture, given)


def similarity(bundle: Bundle, data: str, images: int) -> float:
    """Mean cosine similarity between different images."""
    vectors = bundle.embed_pixels(pixels_of(bundle, data, "test", images, seed=0).values).double()
    total = float(vectors.sum(0).square().sum())
    return (total - len(vectors)) / (len(vectors) * (len(vectors) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="sources as kindred evaluate takes them")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--save", action="store_true", help="write docs/results/export/parity.json")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        mode = "L" if data == "omniglot" else "RGB"
        for backbone in SIZES:
            with tempfile.TemporaryDirectory() as scratch:
                folder = bundle_with_statistics(backbone, data, mode).save(Path(scratch) / "bundle")
                export(folder, onnx=True, torch_export=True, data=data, images=options.images)
                bundle = Bundle.load(folder, "cpu")
                alike = similarity(bundle, data, options.images)
                for name, record in bundle.exports.items():
                    parity = record["parity"]
                    row = {"data": Path(data).stem, "backbone": backbone, "pixels": SIZES[backbone]}
                    row |= {
                        "file": name,
                        "max_difference": parity["max_difference"],
                        "images": parity["images"],
                    }
                    row["similarity_between_images"] = round(alike, 3)
                    rows.append(row)
                    print(row, flush=True)
    if options.save:
        target = Path(__file__).parents[2] / "docs/results/export/parity.json"
        names = " ".join(Path(data).name for data in options.data)
        command = f"python tests/benchmarks/export_parity.py {names} --images {options.images} --save"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps({"command": command, "versions": versions(), "seed": 0, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
