"""Addresses of Milvus, and a connection that translates names and errors.

An address is `file:PATH` for the embedded engine (milvus-lite), `milvus://`, `http://` or `https://` for a
server. pymilvus is imported only when a connection is made: that takes seconds.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from serve.store.items import check_name, is_name
from serve.store.milvus.capabilities import LITE, capabilities
from serve.store.types import StoreError, StoreLocked, StoreMissing, StoreUnreachable

TOKEN = "KINDRED_MILVUS_TOKEN"  # noqa: S105  (the variable's name, not a token)
_SCHEMES = ("file", "milvus", "http", "https")
_PORT = 19530
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_PREFIX = "kindred_"
# How characters that Milvus allows in no name are written.
_WRITTEN = {"_": "__", "-": "_d", ".": "_p"}
_READ = {written: plain for plain, written in _WRITTEN.items()}
_EXTRA = "a store in Milvus needs pymilvus{}; install Kindred with its extra: pip install 'kindred[milvus]'"
_NO_COLLECTION = 100
_UNREACHABLE_WORDS = ("connect", "unavailable", "deadline", "channel closed")
_REFUSED_WORDS = ("auth check failure", "unauthenticated", "permission deny", "privilege")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address.

    Attributes:
        uri: As the user wrote it.
        folder: Where the embedded engine keeps its files; None for a server.
        server: The server as `http(s)://HOST:PORT`; None for the embedded engine.
        database: Milvus database; empty for the default one.
    """

    uri: str
    folder: Path | None = None
    server: str | None = None
    database: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the engine runs inside this process."""
        return self.folder is not None


def is_address(text: object) -> bool:
    """Whether a text names a Milvus rather than a folder of this machine."""
    return isinstance(text, str) and text.lower().startswith(tuple(f"{scheme}:" for scheme in _SCHEMES))


def parse_address(text: str) -> Address:
    """Parses `file:relative/path`, `file:///absolute/path` or `milvus://HOST[:PORT][/DATABASE]`.

    The last may also begin with `http` or `https`; its port is 19530 by default.

    Raises:
        StoreError: It is none of these, or holds a password, which other users of the machine could read on
            the command line.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or _PORT
    except ValueError as error:
        raise StoreError(f"The store's address is malformed ({error}); use milvus://HOST:PORT") from None
    scheme = parts.scheme.lower()
    if parts.username or parts.password:
        raise StoreError(f"The store's address holds a password; put it into {TOKEN} as USER:PASSWORD")
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{text}: a file on another machine; use file:///absolute/path")
        if not parts.path:
            raise StoreError(f"{text} names no file; use file:///absolute/path or file:relative/path")
        return Address(text, folder=Path(unquote(parts.path)))
    if scheme not in _SCHEMES:
        raise StoreError(f"{text} is no address of a store; use milvus://HOST:PORT or file:PATH")
    if not parts.hostname or parts.query or parts.fragment:
        raise StoreError(f"{text} is no address of a Milvus; use milvus://HOST:PORT/DATABASE")
    database = parts.path.strip("/")
    if database and not _DATABASE.fullmatch(database):
        raise StoreError(f"{database!r} is no database name; use letters, digits and '_'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    plain = "https" if scheme == "https" else "http"
    return Address(text, server=f"{plain}://{host}:{port}", database=database)


def milvus_name(name: str) -> str:
    """The collection's or alias's name inside Milvus; different names stay different."""
    return _PREFIX + re.sub(r"[_.-]", lambda found: _WRITTEN[found[0]], check_name(name))


def our_name(name: str) -> str | None:
    """The inverse of `milvus_name`; None for names that Kindred did not make."""
    if not name.startswith(_PREFIX):
        return None
    plain = re.sub(r"_[_dp]", lambda found: _READ[found[0]], name.removeprefix(_PREFIX))
    return plain if is_name(plain) and milvus_name(plain) == name else None


class Engine:
    """One Milvus; call its client's methods through `call`.

    Args:
        address: Where it is.
        token: `USER:PASSWORD` or an API key, for a server that requires one.
        timeout: Seconds that one call to a server may take.

    Attributes:
        can: What this engine can do.
        pymilvus: The client's package, for schemas and data types.

    Raises:
        StoreUnreachable: The server does not answer.
        StoreLocked: Another process has the embedded engine's files open.
        StoreError: pymilvus or milvus-lite is not installed, or the server refuses the token or is too old.
    """

    def __init__(self, address: Address, *, token: str = "", timeout: float = 30.0) -> None:
        self.address = address
        self.pymilvus = _pymilvus()
        # One call at a time: while milvus-lite writes a segment, reads miss rows, and it takes one writer.
        self._turn = threading.RLock() if address.embedded else contextlib.nullcontext()
        self._limits = {} if address.embedded else {"timeout": timeout}
        self._embedded = _Embedded(address.folder) if address.folder is not None else None
        try:
            with self._said_plainly():
                self._client = self.pymilvus.MilvusClient(
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
        """Turns the client's errors into one-line `StoreError`s."""
        try:
            yield
        except self.pymilvus.MilvusException as error:
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


class CollectionCalls:
    """Calls methods of the client for one collection, until it is closed."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.closed = False
        self._name = name
        self._inside = milvus_name(name)

    def check_open(self) -> None:
        """Raises StoreError if the collection is closed, also where there is nothing to call."""
        if self.closed:
            raise StoreError(f"The collection {self._name!r} is closed")

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As `Engine.call`, with the collection's name before the arguments."""
        self.check_open()
        return self.engine.call(method, self._inside, *arguments, **options)


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
        except BaseException as error:
            self._socket.cleanup()
            if isinstance(error, DataDirLockedError):
                text = f"{folder} is in use by another process; stop it or choose another"
                raise StoreLocked(text) from error
            if isinstance(error, OSError):
                raise StoreError(f"{folder} cannot be opened: {error.strerror or error}") from error
            raise
        self.uri = f"unix:{place}"

    def stop(self) -> None:
        """Ends the server and releases the files."""
        self._server.stop(grace=2).wait()
        self._database.close()
        self._socket.cleanup()


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError:
        raise StoreError(_EXTRA.format("")) from None
    # Client and embedded server would log each failed call with a traceback; the error is raised anyway.
    for name in ("pymilvus", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus
