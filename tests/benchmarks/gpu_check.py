"""What can only be checked on a GPU, in at most eight minutes, as one table.

    make gpu-check [PYTHON=python] [ARGS="--out FILE"]

It wants CUDA, Python ≥ 3.11 and torch ≥ 2.11 of the environment, and what else the parts import; it
installs nothing. Each part is a process with a time limit; one that fails leaves a line in the table, and the
others run. The table goes to docs/results/gpu_check/<device>.md. ``--device cpu --tiny`` tries the script.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
BENCHMARK = "tests/benchmarks/bench_renorm.py"
TESTS = ("tests/models/renorm/test_cuda.py", "tests/serve/store/test_device.py")

# (what was measured, the result)
Result = tuple[str, str]


@dataclass(frozen=True)
class Part:
    """Commands that run one after another, and what they found.

    Attributes:
        seconds: the time limit of all commands together.
        read: from what they printed.
    """

    name: str
    seconds: int
    commands: list[list[str]]
    read: Callable[[str], list[Result]]


def parts(device: str, tiny: bool, folder: Path) -> Iterator[Part]:
    """Everything to be done; time limits are eight minutes together."""
    # Our own pytest settings need plugins that the environment may lack.
    tests = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "--import-mode=importlib"]
    tests += ["-p", "no:cacheprovider", *TESTS]
    yield Part("tests", 50, [tests], lambda said: [("", said.splitlines()[-1])])
    renorm = [BENCHMARK, "--device", device, *(["--smoke"] if tiny else [])]
    layers = folder / "layers.json"
    command = [*renorm, "--no-networks", "--rounds", "5", "--out", str(layers)]
    yield Part("layers, time to BatchNorm's", 130, [command], lambda _: ratios(layers))
    network, batches = ("resnet18", (2,)) if tiny else ("resnet50", (64, 256))
    for batch in batches:
        file = folder / f"{batch}.json"
        command = [*renorm, "--only", network, "--batch", str(batch), "--rounds", "3", "--out", str(file)]
        name = f"{network}, {batch} images, step to BatchNorm's"
        yield Part(name, 70, [command], lambda _, file=file: ratios(file))
    accelerator = {"cuda": "gpu"}.get(device, device)
    fit = ["-m", "app", "fit", "--config=configs/demo.yaml", f"--run={folder / 'run'}", "--compare=false"]
    fit += [f"--trainer.max_steps={5 if tiny else 300}", f"--trainer.accelerator={accelerator}"]
    fit += ["--trainer.enable_progress_bar=false", *(["--trainer.limit_val_batches=1"] if tiny else [])]
    evaluate = ["-m", "app", "evaluate", f"--bundle={folder / 'run' / 'bundle'}", "--data=glyphs"]
    evaluate += ["--split=test", f"--out={folder / 'evaluation'}", f"--device={device}"]
    yield Part("fit and evaluate, glyphs", 110, [fit, evaluate], lambda said: recall(said, folder))
    search = [__file__, "--search", device, *(["--tiny"] if tiny else [])]
    yield Part("exact search", 40, [search], lambda said: [("", said.splitlines()[-1])])


def ratios(file: Path) -> list[Result]:
    """The benchmark's rows."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return [
        (
            f"{row['case']}: {row['what']}",
            f"{row['ratio_1']:.3f} of {row['batch_norm_us_1']:,.0f} µs"
            + (f", memory {row['memory']:.2f}" if "memory" in row else ""),
        )
        for row in rows
    ]


def recall(said: str, folder: Path) -> list[Result]:
    precision = re.search(r"^precision .*", said, re.MULTILINE)
    found = re.search(r'"recall@1": ([\d.]+)', (folder / "evaluation" / "results.json").read_text("utf-8"))
    return [
        ("training", precision[0] if precision else "?"),
        ("recall@1 on unseen classes", found[1] if found else "?"),
    ]


def search(device: str, tiny: bool) -> str:
    """Exact search over vectors on the device, and whether the CPU finds the same."""
    import numpy as np

    from serve.store.ann.flat import DeviceScan, scan

    rows, queries = (30_000, 8) if tiny else (1_000_000, 64)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, 128), dtype=np.float32)
    asked = rng.standard_normal((queries, 128), dtype=np.float32)
    copied = DeviceScan(vectors, torch.device(device))
    copied.scan(asked, 10)
    start = time.perf_counter()
    _, found = copied.scan(asked, 10)
    taken = time.perf_counter() - start
    start = time.perf_counter()
    _, wanted = scan(asked, vectors, 10)
    on_cpu = time.perf_counter() - start
    same = float((found == wanted).mean())
    return (
        f"{queries} queries over {rows:,} × 128: {taken * 1000:.2f} ms, "
        f"FAISS on the CPU {on_cpu * 1000:.1f} ms, {same:.2%} of the ranks the same"
    )


def run(part: Part, patience: int) -> list[Result]:
    """Do a part within ``patience`` times its limit."""
    until, said = time.monotonic() + part.seconds * patience, ""
    for command in part.commands:
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=max(1.0, until - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [("", f"**stopped after {part.seconds * patience} s**")]
        said += done.stdout
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            return [("", f"**failed**: {last[:200]}")]
    try:
        return part.read(said)
    except (OSError, LookupError, ValueError) as error:
        return [("", f"**not understood**: {error}")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", type=Path, help="the table; by default docs/results/gpu_check/<device>.md")
    parser.add_argument("--search", metavar="DEVICE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(search(options.search, options.tiny))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    out = options.out or ROOT / "docs/results/gpu_check" / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.md"
    command = " ".join(["gpu_check.py", *sys.argv[1:]])
    python, cuda = platform.python_version(), torch.version.cuda
    lines = [
        f"# {name}",
        "",
        f"`{command}`, Python {python}, torch {torch.__version__}, CUDA {cuda}.",
        "",
        "| part | measured | result |",
        "| --- | --- | --- |",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(options.device, options.tiny, Path(folder)):
            start = time.monotonic()
            results = run(part, patience=5 if options.tiny else 1)
            failed += results[0][1].startswith("**")
            print(f"{part.name}: {time.monotonic() - start:.0f} s, {results[0][1]}", flush=True)
            lines += [f"| {part.name} | {what} | {result} |" for what, result in results]
            # After each part: nothing is lost where the machine goes away.
            out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"table in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
