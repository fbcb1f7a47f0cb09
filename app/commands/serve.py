"""``kindred serve``: serves a bundle and its store over HTTP."""

from pathlib import Path

from rich.console import Console


def serve(
    *,
    bundle: Path | None = None,
    store: str | None = None,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    collection: str | None = None,
    trust_code: bool | None = None,
    log_level: str | None = None,
) -> None:
    """Serve a bundle and its store: REST under /v1, a search page at /, API documentation at /docs.

    Every setting can also be an environment variable (KINDRED_PORT, KINDRED_WRITE_KEY, …) or stand in the
    YAML file that KINDRED_SETTINGS names; options given here override both.

    Args:
        bundle: Folder of the model.
        store: Folder of the store, created if missing; or milvus://HOST:PORT (token in
            KINDRED_MILVUS_TOKEN), or file:PATH for an embedded Milvus.
        host: Address to listen on. All but loopback addresses need KINDRED_READ_KEY and KINDRED_WRITE_KEY.
        port: TCP port; 0 chooses a free one.
        device: Where the network runs and exact segments are searched: auto, cpu or cuda.
        backend: eager, compiled, onnx, or auto (the default): the fastest on this machine, which is found
            while eager serves.
        collection: Collection for requests that name none.
        trust_code: Allow a backbone class outside the known packages; importing it runs its code.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """
    from serve.server import run
    from serve.settings import Settings

    settings = Settings.read(
        bundle=bundle,
        store=store,
        host=host,
        port=port,
        device=device,
        backend=backend,
        collection=collection,
        trust_code=trust_code,
        log_level=log_level,
    )
    run(settings, on_start=announce)


def announce(address: str) -> None:
    """Print the address of the service on a line of its own, which scripts can parse."""
    Console().print(f"search page and API: {address} (Ctrl-C stops)", soft_wrap=True, highlight=False)
