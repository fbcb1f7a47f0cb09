"""Runs the service: checks exposure, binds the port, starts uvicorn."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from models.bundle import Bundle
from models.errors import InputError
from serve.api.app import create_app
from serve.connections import most_connections
from serve.observability import configure_logging, log
from serve.service import AnyCatalogue, Service, load_bundle
from serve.settings import Settings
from serve.store.catalogue import open_catalogue
from serve.store.database import Tuning
from serve.store.types import FingerprintMismatch


def run(
    settings: Settings,
    *,
    bundle: Bundle | None = None,
    on_start: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve until a stop signal, then let requests in flight finish.

    Args:
        settings: What the operator decided.
        bundle: The model; loaded from the settings' folder when absent.
        on_start: Told the address once the port is bound.

    Raises:
        InputError: No bundle, a store of another model, a busy port, or an address that needs keys.
    """
    settings.check_exposure()
    settings = settings.model_copy(update={"max_connections": most_connections(settings.max_connections)})
    configure_logging(settings.log_level, settings.log_format)
    listener = bind(settings.host, settings.port)
    try:
        bundle = bundle or load_bundle(settings)
        app = create_app(settings, bundle, open_collections(settings, bundle))
    except BaseException:
        listener.close()
        raise
    server = _Server(config_of(app, settings), app.state.service)
    on_start(address_of(listener))
    server.run(sockets=[listener])


def config_of(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=app.state.service.connections.protocol,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        root_path=settings.root_path,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
    )


class _Server(uvicorn.Server):
    """Reloads the model on SIGHUP (``systemctl reload``); stops on SIGINT and SIGTERM."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._reloads: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a stop signal."""
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        await super().serve(sockets)

    def _hang_up(self) -> None:
        task = asyncio.ensure_future(self._reload())
        self._reloads.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        try:
            await self._service.reload()
        except Exception as error:  # noqa: BLE001  (the old model stays in use)
            log.error("SIGHUP: the model was not reloaded: %s", error)
        else:
            log.info("SIGHUP: the model is %s", self._service.bundle.fingerprint)


def open_collections(settings: Settings, bundle: Bundle) -> AnyCatalogue:
    """The collections of the settings' store, with one under the settings' name.

    A new name becomes an alias of the one collection that has the model's vectors; where there is none, or
    several, a new collection is created.

    Raises:
        FingerprintMismatch: The default collection's vectors come from another model.
        StoreLocked: Another process has the folder open.
        StoreUnreachable: The store is a Milvus that does not answer.
    """
    token = settings.milvus_token.get_secret_value() if settings.milvus_token else ""
    catalogue = open_catalogue(
        settings.store,
        token=token,
        timeout=settings.milvus_timeout,
        consistency=settings.milvus_consistency,
        tuning=Tuning(device=settings.device),
    )
    try:
        name = settings.collection
        known = catalogue.collections()
        if name not in {*known, *catalogue.aliases()}:
            same = [one for one in known if catalogue.collection(one).fingerprint == bundle.fingerprint]
            if len(same) == 1:
                catalogue.set_alias(name, same[0])
                log.info("%s is now an alias of the collection %s", name, same[0])
            else:
                catalogue.create(name, bundle.dim, bundle.fingerprint, settings.index)
        kept = catalogue.collection(name).fingerprint
        if kept not in (None, bundle.fingerprint):
            raise FingerprintMismatch(
                f"collection {name} in {settings.store}: of model {kept}, the bundle {bundle.fingerprint}; "
                "serve that model's bundle, or index the images again"
            )
    except BaseException:
        catalogue.close()
        raise
    return catalogue


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; InputError if the address cannot be taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Listening at once makes a second server on the same port fail here, before it loads a model.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise InputError(f"address {host}:{port}: cannot listen ({reason}); choose another port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The address of a bound socket, as a person types it into a browser."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
