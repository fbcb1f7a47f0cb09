"""A connection to Milvus: opens it once, translates its errors, and starts the embedded engine.

pymilvus is imported here and only when a connection is made: it takes seconds, and most users have no Milvus.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

from serve.store.milvus.address import TOKEN, Address
from serve.store.milvus.capabilities import LITE, capabilities
from serve.store.protocol import StoreError, StoreLocked, StoreMissing, StoreUnreachable

_EXTRA = "a store in Milvus needs pymilvus{}; install Kindred with its extra: pip install 'kindred[milvus]'"
_NO_COLLECTION = 100
_UNREACHABLE_WORDS = ("connect", "unavailable", "deadline", "channel closed")
_REFUSED_WORDS = ("auth check failure", "unauthenticated", "permission deny", "privilege")


class Engine:
    """One Milvus; call its client's methods through `call`.

    Args:
        address: Where it is.
        token: `USER:PASSWORD` or an API key, for a server that wants one.
        timeout: Seconds that one call to a server may take.

    Attributes:
        can: What this engine can do.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreLocked: Another process has the embedded engine's files open.
        StoreError: pymilvus or milvus-lite is not installed, or the server refuses the token or is too old.
    """

    def __init__(self, address: Address, *, token: str = "", timeout: float = 30.0) -> None:
        self.address = address
        self._pymilvus = _pymilvus()
        # milvus-lite loses sight of rows for a moment while it writes a segment, and takes one writer at a
        # time.
        self._turn = threading.RLock() if address.embedded else contextlib.nullcontext()
        self._limits = {} if address.embedded else {"timeout": timeout}
        self._embedded = _Embedded(address.folder) if address.folder is not None else None
        try:
            with self._said_plainly():
                self._client = self._pymilvus.MilvusClient(
                    uri=self._embedded.uri if self._embedded else address.server,
                    token=token,
                    db_name=address.database,
                    dedicated=True,
                    timeout=timeout,
                )
            told = self.call("get_server_version")
            self.can = LITE if address.embedded else capabilities(told)
        except BaseException:
            self.close()
            raise

    @property
    def pymilvus(self) -> Any:
        """The client's package, for schemas and data types."""
        return self._pymilvus

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the client.

        Raises:
            StoreMissing: The collection does not exist.
            StoreUnreachable: The server does not answer in time.
            StoreError: The server refuses; the message is its own.
        """
        with self._turn, self._said_plainly():
            return getattr(self._client, method)(*arguments, **(self._limits | options))

    def close(self) -> None:
        """Ends the connection, and the embedded engine with it; a second call does nothing."""
        with self._turn, contextlib.suppress(Exception):
            self._client.close()
        if self._embedded:
            self._embedded.stop()

    @contextlib.contextmanager
    def _said_plainly(self) -> Any:
        """Turns the client's errors into ours, one line each."""
        try:
            yield
        except self._pymilvus.MilvusException as error:
            raise self._translated(error.code, str(error.message)) from error
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            if "closed" not in str(error):
                raise
            raise StoreError(f"The connection to {self.address.uri} is closed") from error

    def _translated(self, code: int, message: str) -> StoreError:
        line = " ".join(message.split())[:300]
        lower = line.lower()
        if code == _NO_COLLECTION or "collection not found" in lower or "can't find collection" in lower:
            return StoreMissing(f"{self.address.uri}: {line}")
        if any(word in lower for word in _REFUSED_WORDS):
            return StoreError(f"{self.address.uri} refuses this user ({line}); set {TOKEN} to USER:PASSWORD")
        if any(word in lower for word in _UNREACHABLE_WORDS):
            return StoreUnreachable(f"{self.address.uri} does not answer ({line}); is Milvus running there?")
        return StoreError(f"{self.address.uri}: {line}")


class _Embedded:
    """milvus-lite on files of this machine, reached through a socket that no other user can open."""

    def __init__(self, folder: Path) -> None:
        try:
            from milvus_lite.adapter.grpc.server import start_server_in_thread
            from milvus_lite.exceptions import DataDirLockedError
        except ImportError:
            raise StoreError(_EXTRA.format(" and milvus-lite")) from None
        if folder.is_file():
            raise StoreError(f"{folder} is a file; an embedded Milvus is a folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "LOCK").exists():
            raise StoreError(f"{folder} holds other files; name a new folder for the embedded Milvus")
        self._socket = tempfile.TemporaryDirectory(prefix="kindred-")
        # The server joins host and port with a colon: this is gRPC's form of a socket's address.
        place = Path(self._socket.name) / "milvus"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._server, self._database, _ = start_server_in_thread(str(folder), "unix", str(place))
        except DataDirLockedError as error:
            self._socket.cleanup()
            raise StoreLocked(f"{folder} is in use by another process; stop it or choose another") from error
        except OSError as error:
            self._socket.cleanup()
            raise StoreError(f"{folder} cannot be opened: {error.strerror or error}") from error
        except BaseException:
            self._socket.cleanup()
            raise
        self.uri = f"unix:{place}"

    def stop(self) -> None:
        """Ends the server and lets go of the files."""
        self._server.stop(grace=2).wait()
        self._database.close()
        self._socket.cleanup()


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError:
        raise StoreError(_EXTRA.format("")) from None
    # Every failed call would be logged with its traceback, at the client and at the embedded server; it is
    # raised as well, and told once by who catches it.
    for name in ("pymilvus", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus
