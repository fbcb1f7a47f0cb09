"""Settings from arguments, environment and file; starting and failing to start."""

import socket

import pytest

from models.bundle import Bundle
from models.errors import InputError
from models.network import Architecture, EmbeddingNetwork
from models.preprocess import Preprocess
from serve.server import bind, open_collections, run
from serve.service import load_bundle
from serve.settings import Settings


def test_arguments_beat_environment_beats_file(monkeypatch, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax_k: 1\nmax_batch: 1\n")
    monkeypatch.setenv("KINDRED_SETTINGS", str(file))
    monkeypatch.setenv("KINDRED_MAX_K", "2")
    monkeypatch.setenv("KINDRED_PORT", "2")
    settings = Settings.read(port=3, host=None)
    assert (settings.port, settings.max_k, settings.max_batch) == (3, 2, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("prot: 1", "prot"), ("port: high", "port"), ("- 1", "settings"), ("port: {", "settings")],
)
def test_a_bad_file_is_one_line(monkeypatch, tmp_path, text, words):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    monkeypatch.setenv("KINDRED_SETTINGS", str(file))
    with pytest.raises(InputError, match=words):
        Settings.read()


def test_a_missing_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("KINDRED_SETTINGS", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml"):
        Settings.read()


def test_keys_do_not_show(monkeypatch):
    monkeypatch.setenv("KINDRED_WRITE_KEY", "sesame")
    settings = Settings.read()
    assert settings.write_key.get_secret_value() == "sesame"
    assert "sesame" not in repr(settings)


def test_a_busy_port_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"{port}.*another port"):
            bind("127.0.0.1", port)


def test_no_bundle_is_said_and_the_port_is_free_again(tmp_path):
    settings = Settings(bundle=tmp_path / "nothing", store=tmp_path / "store", port=0)
    with pytest.raises(InputError, match="nothing"):
        run(settings)


def test_a_store_of_another_model_is_refused(tmp_path, make_model):
    settings = Settings(store=tmp_path / "store")
    open_collections(settings, make_model(0)).close()
    with pytest.raises(InputError, match="of model"):
        open_collections(settings, make_model(1))
    open_collections(settings, make_model(0)).close()


def test_a_new_name_is_an_alias_of_the_models_collection(tmp_path, make_model):
    """So that a model's successor can take over: an alias moves, a collection does not."""
    model = make_model(0)
    first = Settings(store=tmp_path / "store")
    open_collections(first, model).close()
    live = open_collections(first.model_copy(update={"collection": "live"}), model)
    assert (live.collections(), live.aliases()) == (["default"], {"live": "default"})
    live.create("second", model.dim, model.fingerprint, None)
    live.close()
    other = open_collections(first.model_copy(update={"collection": "other"}), model)
    assert other.aliases() == {"live": "default"}
    assert other.collections() == ["default", "other", "second"]
    other.close()


def test_a_backbone_of_ones_own_is_loaded_when_trusted(tmp_path):
    architecture = Architecture(
        "torchvision.models.resnet.resnet18", {"num_classes": 8}, embedding_dim=4, normalization="batch"
    )
    network = EmbeddingNetwork(architecture, trust_code=True)
    Bundle(network, architecture, Preprocess(size=32)).save(tmp_path)
    with pytest.raises(InputError, match="trust_code"):
        load_bundle(Settings(bundle=tmp_path, backend="eager"))
    assert load_bundle(Settings(bundle=tmp_path, backend="eager", trust_code=True)).dim == 4
