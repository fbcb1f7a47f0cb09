import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from app.cli import main
from app.experiment.batches import GradientBatches, partition_of
from app.experiment.experiment_config import Experiment, Setting, load_experiment, merge
from app.experiment.loading import load_images
from app.experiment.runs import Results, Run, planned
from app.experiment.tables import by_variant, compare, draw_table, holds, put_table
from app.experiment.training import make_optimizer
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.renorm import native

ROOT = Path(__file__).parents[2]


def record_of(folder: Path, variant: str, seed: int = 0) -> dict[str, Any]:
    return Results(folder, "colours").read()[variant, seed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes of noisy colours, six training and two validation images each."""
    root = tmp_path_factory.mktemp("experiment") / "colours"
    draw(root, ["train"] * 6 + ["val"] * 2)
    return root


def draw(root: Path, parts: list[str]) -> None:
    rng = np.random.default_rng(0)
    for label in range(8):
        colour = rng.integers(0, 256, 3)
        for number, part in enumerate(parts):
            place = root / part / f"c{label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(colour + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "cache"))


def described(folder: Path) -> dict[str, object]:
    return {
        "title": "colours",
        "base": {
            "data": {"source": str(folder), "image_size": 16},
            "augmentation": {"flip": 0.5},
            "backbone": "conv4",
            "backbone_args": {"width": 4},
            "classes_per_step": 4,
            "images_per_class": 4,
            "groups": {"size": 8},
            "steps": 4,
            "curve_points": 4,
        },
        "variants": {
            "shuffled": {},
            "grouped": {"groups": {"classes": 2}},
            "moving": {
                "normalization": "renorm",
                "normalization_args": {"gradient_statistics": "moving"},
                "groups": {"classes": 2},
            },
            "group": {"normalization": "group"},
            "frozen": {"normalization": "frozen_batch"},
        },
        "seeds": [0, 1],
        "primary": ["shuffled", "grouped"],
        "comparisons": [
            {"title": "loss", "variant": "grouped", "against": "shuffled", "at_least": -100, "at_most": 100},
            {"title": "recovered", "variant": "moving", "against": "grouped", "loss_from": "shuffled"},
        ],
    }


def written(tmp_path: Path, content: dict[str, object]) -> list[str]:
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(content))
    return ["experiment", "colours", "--configs", str(tmp_path), "--out", str(tmp_path / "out")]


def test_a_record_says_whether_the_fused_kernels_were_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*written(tmp_path, described(folder)), "--variants", "group", "--seeds", "0", "--no-draw"]
    monkeypatch.setattr(native, "enabled", lambda: False)
    assert main(command) == 0
    record = record_of(tmp_path / "out", "group")
    assert (
        record["command"] == "KINDRED_RENORM_NATIVE=0 kindred experiment colours --variants group --seeds 0"
    )


def test_an_experiment_runs_draws_and_skips_what_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = described(folder)
    command = written(tmp_path, content)
    assert main(command) == 0
    out = tmp_path / "out"
    assert list(Results(out, "colours").read()) == [
        ("frozen", 0), ("group", 0), ("grouped", 0), ("grouped", 1), ("moving", 0), ("shuffled", 0),
        ("shuffled", 1),
    ]  # fmt: skip
    record = record_of(out, "moving")
    assert record["command"].endswith("kindred experiment colours --variants moving --seeds 0")
    assert set(record["metrics"]) >= {
        "accuracy/running",
        "accuracy/recalibrated",
        "accuracy/iid_batches",
        "accuracy/grouped_batches",
        "accuracy/training",
    }
    assert [point["step"] for point in record["curve"]] == [1, 2, 3, 4]
    assert len(record["split_hash"]) == 64
    assert "accuracy/recalibrated" not in record_of(out, "group")["metrics"]
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "| shuffled | 2 |" in (out / "README.md").read_text()

    before = Results(out, "colours").read()
    content["variants"]["group"] = {"normalization": "layer"}  # type: ignore[index]
    capsys.readouterr()
    assert main(written(tmp_path, content)) == 0
    assert "7 runs, 6 done already" in capsys.readouterr().out
    after = Results(out, "colours").read()
    assert [run for run in after if after[run] != before[run]] == [("group", 0)]


def test_the_same_seed_gives_the_same_metrics(folder: Path, tmp_path: Path) -> None:
    command = written(tmp_path, described(folder))[:-1]
    metrics = []
    for place in ("a", "b"):
        more = [str(tmp_path / place), "--variants", "moving", "--seeds", "3", "--no-draw"]
        assert main([*command, *more]) == 0
        metrics.append(record_of(tmp_path / place, "moving", 3)["metrics"])
    assert metrics[0] == metrics[1]


def test_triplets_are_tested_on_unseen_classes_after_pretraining(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    draw(folder, ["."] * 4)
    content = described(folder)
    content["base"] |= {  # type: ignore[operator]
        "task": "triplets",
        "data": {"source": str(folder), "image_size": 16, "unseen": True, "pretraining": True},
        "pretraining": {"steps": 2},
        "classes_per_step": 2,
        "groups": {"size": 4},
    }
    content["variants"] = {"batch": {}, "frozen": {"normalization": "frozen_batch", "mining": "batch"}}
    content |= {"primary": [], "comparisons": [], "metric": "recall@1"}
    assert main(written(tmp_path, content)) == 0
    metrics = record_of(tmp_path / "out", "batch")["metrics"]
    assert 0 <= metrics["recall@1"] <= 1
    assert 0 <= metrics["gap/training"] <= 2
    assert len(list((tmp_path / "cache/experiments").glob("*.pt"))) == 1


def test_another_loss_learns_with_proxies_on_folds_of_the_training_classes(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    draw(folder, ["."] * 4)
    (folder / "split.csv").write_text(
        "class,split\n" + "".join(f"c{label},{'train' if label < 6 else 'test'}\n" for label in range(8))
    )
    content = described(folder)
    content["base"] |= {  # type: ignore[operator]
        "task": "triplets",
        "data": {
            "source": str(folder),
            "image_size": 16,
            "only": "train",
            "unseen": True,
            "folds": 3,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "head_learning_rate": 0.01,
    }
    proxies = {"class_path": "NormalizedSoftmaxLoss"}
    content["variants"] = {
        "whole": {"groups": None, "loss": proxies},
        "frozen": {"normalization": "renorm", "normalization_args": {"frozen": True}, "loss": proxies},
    }
    content |= {"primary": [], "comparisons": [], "metric": "map@r"}
    assert main(written(tmp_path, content)) == 0
    for variant in ("whole", "frozen"):
        metrics = record_of(tmp_path / "out", variant)["metrics"]
        assert 0 <= metrics["map@r"] <= 1
        assert "triplets/any" not in metrics
    data = load_images(Experiment.model_validate(content).setting("whole").data)
    assert (data.classes, len(data.val.labels), data.preprocess.std) == (4, 8, (0.5, 0.5, 0.5))


def test_a_head_has_a_rate_of_its_own(folder: Path) -> None:
    setting = Setting.model_validate(
        described(folder)["base"] | {"learning_rate": 0.1, "head_learning_rate": 0.3}  # type: ignore[operator]
    )
    network = EmbeddingNetwork(Architecture("conv4", {"width": 4}, "batch", embedding_dim=8))
    proxies = [torch.nn.Parameter(torch.zeros(2, 8))]
    backbone, head = make_optimizer(setting, network, proxies).param_groups
    assert (backbone["lr"], head["lr"]) == (0.1, 0.3)
    assert sum(p.numel() for p in head["params"]) == sum(p.numel() for p in network.head.parameters()) + 16


def test_a_record_made_before_a_setting_was_added_still_counts(folder: Path, tmp_path: Path) -> None:
    command = [*written(tmp_path, described(folder)), "--variants", "group", "--seeds", "0", "--no-draw"]
    assert main(command) == 0
    record = record_of(tmp_path / "out", "group")
    run = Run("group", 0, Experiment.model_validate(described(folder)).setting("group"))
    results = Results(tmp_path / "out", "colours")
    del record["setting"]["head_learning_rate"]
    results.path.write_text(json.dumps(record))
    assert results.is_done(run)
    record["setting"]["unknown"] = 1
    results.path.write_text(json.dumps(record))
    assert not results.is_done(run)


def test_processes_that_write_at_once_keep_each_others_runs(folder: Path, tmp_path: Path) -> None:
    setting = Experiment.model_validate(described(folder)).setting("group")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_runs, args=(tmp_path, setting, start)) for start in (0, 20, 40)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert list(Results(tmp_path, "colours").read()) == [("group", seed) for seed in range(60)]
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


def write_runs(folder: Path, setting: Setting, start: int) -> None:
    for seed in range(start, start + 20):
        Results(folder, "colours").write(Run("group", seed, setting), {"metrics": {}, "curve": []})


def test_a_page_keeps_what_is_written_around_its_table(folder: Path) -> None:
    experiment = Experiment.model_validate(described(folder))
    first = put_table(None, "| 1 |\n", experiment, "colours")
    assert first.startswith("# colours\n\ncolours\n")
    page = first.replace("# colours", "# Colours of few classes") + "\nWhat follows from it.\n"
    again = put_table(page, "| 2 |\n", experiment, "colours")
    assert again == page.replace("| 1 |", "| 2 |")
    assert put_table("# Mine\n", "| 1 |\n", experiment, "colours").startswith("# Mine\n\n<!-- written")


def test_variants_of_a_seed_see_the_same_images_in_another_order(folder: Path) -> None:
    experiment = Experiment.model_validate(described(folder))
    batches = []
    for variant in ("shuffled", "grouped"):
        setting = experiment.setting(variant)
        data = load_images(setting.data)
        batches.append(GradientBatches(setting, data.train, data.preprocess, 0)[1][0])
    one, other = (b.images.flatten(1).sum(1).sort().values for b in batches)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert batches[0].labels.tolist() != batches[1].labels.tolist()
    assert [len(set(batches[1].labels[group::2].tolist())) for group in range(2)] == [2, 2]


def test_a_part_a_number_of_images_and_a_number_of_classes(folder: Path) -> None:
    data = load_images(Setting.model_validate(described(folder)["base"]).data)
    assert (data.classes, len(data.train.labels), len(data.val.labels)) == (8, 48, 16)
    few = load_images(data_of(folder, classes=3, train_images=5))
    assert (few.classes, len(few.train.labels), len(few.val.labels)) == (3, 15, 9)
    assert few.split_hash != data.split_hash


def data_of(folder: Path, **values: object):
    base = merge(described(folder)["base"], {"data": values})  # type: ignore[arg-type]
    return Setting.model_validate(base).data


def test_seeds_come_one_after_another_so_that_pairs_are_early(folder: Path) -> None:
    experiment = Experiment.model_validate(described(folder))
    runs = [(run.variant, run.seed) for run in planned(experiment, None, None, pilot=False)]
    assert runs[5:] == [("shuffled", 1), ("grouped", 1)]
    assert {seed for _, seed in runs[:5]} == {0}
    assert len(planned(experiment, None, None, pilot=True)) == 5
    named = planned(experiment, ["group"], [4, 5], pilot=False)
    assert [(run.variant, run.seed) for run in named] == [("group", 4), ("group", 5)]


def test_comparisons_use_the_seeds_that_all_arms_have(folder: Path) -> None:
    experiment = Experiment.model_validate(described(folder))
    metrics = {
        "shuffled": {0: {"accuracy/running": 0.5}, 1: {"accuracy/running": 0.6}},
        "grouped": {0: {"accuracy/running": 0.3}, 1: {"accuracy/running": 0.3}},
        "moving": {1: {"accuracy/running": 0.45}},
    }
    loss = compare(experiment.comparisons[0], experiment.metric, metrics)
    assert loss is not None
    assert (round(loss[0].value, 6), loss[0].seeds, loss[1]) == (-25.0, 2, None)
    recovered = compare(experiment.comparisons[1], experiment.metric, metrics)
    assert recovered is not None
    assert recovered[1] is not None
    assert (round(recovered[0].value, 6), round(recovered[1].value, 6)) == (15.0, 0.5)
    assert compare(experiment.comparisons[1], experiment.metric, {"moving": {}}) is None
    assert "| loss | 2 | -25.0" in draw_table(experiment, metrics)


def test_a_conclusion_holds_or_not_or_says_nothing(folder: Path) -> None:
    def said(**bounds: float) -> bool | None:
        experiment = Experiment.model_validate(described(folder))
        change = {"at_least": None, "at_most": None, **bounds}
        return holds(experiment.comparisons[1].model_copy(update=change), experiment.metric, metrics)

    metrics = {
        variant: {0: {"accuracy/running": value}}
        for variant, value in {"shuffled": 0.5, "grouped": 0.3, "moving": 0.4}.items()
    }
    assert said() is None
    assert said(at_least=9, at_most=11, fraction_at_least=0.4)
    assert not said(at_least=11)
    assert not said(at_most=9)
    assert not said(fraction_at_least=0.6)
    del metrics["moving"]
    assert said(at_least=9) is None


def test_the_reduced_part_is_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = described(folder)
    command = written(tmp_path, content)
    assert main([*command, "--reduced"]) == 2
    content["reduced"] = {"variants": ["grouped", "shuffled"], "seeds": [0]}
    assert main([*written(tmp_path, content), "--reduced", "--check"]) == 0
    assert "holds: loss" in capsys.readouterr().out
    content["comparisons"][0]["at_least"] = 99  # type: ignore[index]
    assert main([*written(tmp_path, content), "--reduced", "--check"]) == 1
    assert "DOES NOT HOLD: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"primary": ["nothing"]}, "a variant that it lacks: 'nothing'"),
        (
            {"variants": {"a": {"stepz": 3}}, "primary": [], "comparisons": []},
            "variant 'a': stepz: Extra inputs",
        ),
        (
            {"variants": {"a": {"steps": 0}}, "primary": [], "comparisons": []},
            "variant 'a': steps: Input should be",
        ),
        ({"title": 5}, "title: Input should be a valid string"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    folder: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    written(tmp_path, described(folder) | change)
    with pytest.raises(InputError, match=said):
        load_experiment(tmp_path / "colours.yaml")


def test_unknown_names_and_broken_records_are_bad_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = written(tmp_path, described(folder))
    assert main(["experiment", "nothing", "--configs", str(tmp_path)]) == 2
    assert "there are: colours" in capsys.readouterr().err
    assert main([*command, "--variants", "nothing"]) == 2
    assert main([*command, "--threads", "0"]) == 2
    runs = Results(tmp_path / "out", "colours").path
    runs.parent.mkdir()
    for line in ('{"variant": "group", "seed": 0}', "[]", "5", '{"variant"'):
        runs.write_text(line)
        assert main(command) == 2
        assert "line 1 is no run; delete it to run it again" in capsys.readouterr().err


def test_the_keys_of_earlier_files_are_read_with_a_message(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = described(folder)
    content |= {"arms": content.pop("variants"), "decisive": content.pop("primary"), "figure": "loss/running"}
    content["reduced"] = {"arms": ["grouped"], "seeds": [0]}
    content["comparisons"][0]["arm"] = content["comparisons"][0].pop("variant")  # type: ignore[index]
    content["comparisons"][0]["share_at_least"] = 0.5  # type: ignore[index]
    written(tmp_path, content)
    experiment = load_experiment(tmp_path / "colours.yaml")
    assert set(experiment.variants) == set(described(folder)["variants"])  # type: ignore[call-overload]
    assert (experiment.primary, experiment.metric) == (["shuffled", "grouped"], "loss/running")
    assert experiment.reduced is not None
    assert experiment.reduced.variants == ["grouped"]
    assert (experiment.comparisons[0].variant, experiment.comparisons[0].fraction_at_least) == (
        "grouped",
        0.5,
    )
    assert [record.args[1:] for record in caplog.records] == [  # type: ignore[index]
        ("arm", "variant"), ("arms", "variants"), ("decisive", "primary"), ("figure", "metric"),
        ("share_at_least", "fraction_at_least"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {"consecutive": True}, "passes": 2}, "want passes: 1"),
        ({"groups": {"shared_gradient_momentum": 0.5}, "passes": 2}, "want passes: 1"),
        ({"groups": {"shared_gradient_momentum": 0.5, "consecutive": True}}, "leave out one of the two"),
        ({"groups": {"shared_gradient_momentum": 0.5}}, "only normalization: renorm"),
    ],
)
def test_groups_that_contradict_are_bad_input(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = described(folder)
    content["variants"] = {"one": change}
    content |= {"primary": [], "comparisons": []}
    assert main(written(tmp_path, content)) == 2
    assert message in capsys.readouterr().err


def test_consecutive_and_shared_groups_train(folder: Path, tmp_path: Path) -> None:
    content = described(folder)
    quick = {"momentum": {"start": 0.3, "end": 0.3, "begin": 0, "finish": 1}}
    content["base"] |= {"steps": 60, "curve_points": 1, "ramps": quick, "learning_rate": 0.05}
    content["variants"] = {
        "consecutive": {"normalization": "renorm", "groups": {"classes": 2, "consecutive": True}},
        "shared": {"normalization": "renorm", "groups": {"classes": 2, "shared_gradient_momentum": 0.5}},
        "batch": {"groups": {"classes": 2, "consecutive": True}, "nesterov": True},
    }
    content |= {"primary": [], "comparisons": []}
    assert main(written(tmp_path, content)) == 0
    for variant in ("consecutive", "shared", "batch"):
        metrics = record_of(tmp_path / "out", variant)["metrics"]
        assert np.isfinite(list(metrics.values())).all()
        assert metrics["loss/running"] < 1.8  # by chance: log 8 = 2.08


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_of_the_project_is_sound(path: Path) -> None:
    experiment = load_experiment(path)
    for variant in experiment.variants:
        setting = experiment.setting(variant)
        groups = partition_of(setting).groups(setting.classes_per_step, setting.images_per_class, (0,))
        assert len(groups) % setting.passes == 0


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/results").glob("*/runs.jsonl")), ids=lambda p: p.parent.name
)
def test_the_committed_runs_are_the_configurations_and_the_tables_theirs(path: Path) -> None:
    name = path.parent.name
    experiment, results = (
        load_experiment(ROOT / f"configs/experiment/{name}.yaml"),
        Results(path.parent, name),
    )
    for variant, seed in results.read():
        assert results.is_done(Run(variant, seed, experiment.setting(variant)))
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    assert (
        put_table(page, draw_table(experiment, by_variant(results.records(experiment))), experiment, name)
        == page
    )


def test_the_papers_setting_runs_on_a_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path))
    draw(tmp_path / "imagenet", ["train"] * 2 + ["val"])
    paper = yaml.safe_load((ROOT / "configs/experiment/paper_imagenet.yaml").read_text())
    miniature = {"data": {"image_size": 75}, "classes_per_step": 4, "steps": 2, "curve_points": 1}
    miniature |= {"passes": 2, "groups": {"size": 4}}
    paper["base"] = merge(paper["base"], miniature)
    paper["variants"] = {"renorm-2x2": merge(paper["variants"]["renorm-16x2"], {"groups": {"classes": 2}})}
    paper["comparisons"] = []
    command = written(tmp_path, paper)
    assert main(command) == 0
    record = record_of(tmp_path / "out", "renorm-2x2")
    assert record["setting"]["average"] == 0.9999
    assert np.isfinite(list(record["metrics"].values())).all()
