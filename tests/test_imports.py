"""The import rule of the architecture: data flows one way, app at the top, models/renorm at the bottom."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"app", "models", "data", "serve"}

# What each package may import of the others. `models` alone means its public faces, listed below.
ALLOWED: dict[str, set[str]] = {
    "models": set(),
    "data": {"models"},
    "serve": {"models"},
    "app": {"models", "data", "serve"},
}
# data and serve see only these modules of models.
PUBLIC_OF_MODELS = {
    "data": {"models.errors", "models.eval_mode", "models.files", "models.cache_folder", "models.preprocess"},
    "serve": {"models.errors", "models.preprocess", "models.bundle"},
}


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}


def imports_of(path: Path) -> set[str]:
    """Absolute module names that a file imports, relative ones resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            imported = {f"{module}.{alias.name}" for alias in node.names}
            # `from models import errors` imports a module, and of the package only what Python loads anyway.
            names |= imported if imported <= MODULES.keys() else {module}
    return names


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    wrong = []
    for path in sources(package):
        for name in imports_of(path):
            top = name.split(".")[0]
            if top not in PACKAGES or top == package:
                continue
            public = PUBLIC_OF_MODELS.get(package)
            is_public = public is None or any(name == face or name.startswith(face + ".") for face in public)
            if top not in ALLOWED[package] or (top == "models" and name != "models" and not is_public):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_renorm_imports_torch_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "models" / "renorm").rglob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "torch"}
        and not name.startswith("models.renorm")
    ]
    assert not wrong, "\n".join(wrong)


def test_metrics_need_torch_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "scipy", "sklearn"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "models" / "metrics").rglob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in allowed
        and not name.startswith(("models.metrics", "models.errors", "models.gathering"))
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Counted between modules of the project, at any depth of nesting inside functions too."""
    edges = {
        name: {target for target in imports_of(path) if target in MODULES and target != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


# Of the evaluation: the commands are above the report, which is above what is measured.
EVALUATION = ["app.commands", "app.reports", "app.evaluation"]


def unit(module: str) -> str:
    """The package or module right below one of the four packages."""
    return ".".join(module.split(".")[:2])


def test_evaluation_knows_nothing_of_what_shows_it() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in MODULES.items()
        for target in imports_of(path)
        if unit(name) in EVALUATION and unit(target) in EVALUATION[: EVALUATION.index(unit(name))]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_subpackages_do_not_import_each_other_in_circles(package: str) -> None:
    """Also where no module does: two packages that need each other are one."""
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        below = {unit(target) for target in imports_of(path) if target in MODULES and target.count(".")}
        if name.startswith(f"{package}."):
            edges.setdefault(unit(name), set()).update(below - {unit(name)})
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    assert not edges, f"in circles: {', '.join(sorted(edges))}"


def test_serving_stays_light() -> None:
    """The server starts without the training stack."""
    every = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("serve")
    ]
    heavy = ("lightning", "pytorch_metric_learning", "sklearn", "matplotlib")
    assert imported_by([f"import {', '.join(every)}"], ROOT, heavy) == {}


# None of these is imported to print help, to refuse arguments or to ask a service.
HEAVY = (
    "faiss", "fastapi", "jinja2", "lightning", "matplotlib", "pandas", "pyarrow", "pydantic", "scipy",
    "sklearn", "starlette", "tensorboard", "timm", "torch", "torchmetrics", "torchvision", "uvicorn",
)  # fmt: skip
# Lightning's parser prints the help on training: Lightning is there, and what it imports, but not these.
HEAVY_FOR_TRAINING = (
    "app.evaluation", "data.glyphs", "faiss", "fastapi", "httpx", "jinja2", "pandas", "serve", "sklearn",
    "tensorboard", "timm", "uvicorn",
)  # fmt: skip


WORKS = (
    "import serve.client, serve.client.remote",
    "main(['--help'])",
    "main(['demo', '--help'])",
    "main(['embed', '--help'])",
    "main(['evaluate', '--help'])",
    "main(['experiment', '--help'])",
    "main(['export', '--help'])",
    "main(['index', '--help'])",
    "main(['index', 'copy', '--help'])",
    "main(['index', 'tune', '--help'])",
    "main(['search', '--help'])",
    "main(['serve', '--help'])",
    "main(['--version'])",
    "assert main(['fly']) == 2",
    "assert main(['demo', '--minutes=0']) == 2",
    "assert main(['embed', '--bundle=b', '--data=d', '--out=o', '--nodes=0']) == 2",
    "assert main(['export']) == 2",
    "assert main(['export', '--backbone=resnet18']) == 2",
    "assert main(['experiment', 'none', '--threads=0']) == 2",
    "assert main(['index', '--store=s']) == 2",
    "assert main(['index', '--bundle=b', '--data=d']) == 2",
    "assert main(['index', 'copy', 'a', 'a']) == 2",
    "assert main(['index', 'tune']) == 2",
    "assert main(['serve', '--prot=1']) == 2",
    "assert main(['search', 'nothing.png']) == 2",
    "assert main(['search', 'photo.png', '--url', 'http://127.0.0.1:9']) == 2",
)


def imported_by(works: Sequence[str], folder: Path, modules: tuple[str, ...]) -> dict[str, list[str]]:
    """Those of the modules that each work is the first to import; all run in one process of their own."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from app.cli import main
found = {{}}
for work in {list(works)!r}:
    before = set(sys.modules)
    try:
        exec(work)
    except SystemExit:
        pass
    if new := {{*{modules!r}}} & {{*sys.modules}} - before:
        found[work] = sorted(new)
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_help_refusals_and_requests_stay_light(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"whatever it is, nobody answers")
    assert imported_by(WORKS, tmp_path, HEAVY) == {}


def test_help_on_training_stays_light(tmp_path: Path) -> None:
    assert imported_by(["main(['fit', '--help'])"], tmp_path, HEAVY_FOR_TRAINING) == {}
