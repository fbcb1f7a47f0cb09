"""Settings of the service: from a YAML file, environment (``KINDRED_…``) and the caller; the last wins."""

import functools
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from models.errors import InputError
from serve.store.milvus.engine import is_address, parse_address


def _store_location(value: object) -> object:
    """An address stays the text it is (a path would lose a slash); everything else is a folder."""
    if is_address(value):
        try:
            return parse_address(str(value)).uri
        except InputError as error:
            raise ValueError(str(error)) from error
    return Path(value) if isinstance(value, str) else value


@functools.lru_cache(256)
def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case and without a final dot; None for a malformed header."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    plain = parts.netloc == header and "@" not in header
    return parts.hostname.removesuffix(".") if plain and parts.hostname else None


def _plain_host(text: str) -> str:
    name = host_name(text) or host_name(f"[{text}]")  # IPv6 addresses stand in brackets in a Host header
    if name is None:
        raise ValueError(f"{text} is no host name; write only the name, such as photos.example")
    return name


def _plain_origin(text: str) -> str:
    origin = text.lower().removesuffix("/")
    if origin != "*" and host_name(origin.partition("://")[2]) is None:
        raise ValueError(f"{text} is no origin; write scheme and host, such as https://photos.example")
    return origin


class Settings(BaseSettings):
    """Settings of the service.

    Each field is also an environment variable, ``KINDRED_`` plus its name in capitals
    (``KINDRED_WRITE_KEY``). The environment beats the file, arguments beat both.

    Attributes:
        bundle: Folder of the saved model.
        store: Folder of the store, made when missing; or the address of a Milvus: ``milvus://HOST:PORT``, or
            ``file:PATH`` for an embedded one.
        milvus_token: ``USER:PASSWORD`` or API key of that Milvus.
        milvus_timeout: Seconds that one call to it may take.
        milvus_consistency: Of new collections there: "Strong" (a search sees every acknowledged write) or
            "Session" (every one of this process; faster).
        collection: Collection (or alias) used where a request names none. A name that is new becomes an alias
            of the one collection that has the model's vectors, or a new collection.
        host: Address to listen on. Any address but loopback needs keys, see ``allow_without_key``.
        port: TCP port; 0 lets the system choose.
        read_key: Key for every request that reads. Without it, reading is open.
        write_key: Key for every request that changes something; it reads as well.
        keys_file: File of more keys, ``read KEY`` or ``write KEY`` on each line; it is read again when it has
            changed, so that keys can be exchanged while the service runs.
        public_reads: Allow a public address with a write key alone, so that anyone may search.
        allow_without_key: Allow a public address with no key at all, for networks that are closed by other
            means.
        allowed_hosts: Host names accepted besides loopback's while no read key is set (DNS rebinding).
        cors_origins: Web origins whose pages may call the API; none by default.
        device: Where the network runs and exact segments are scanned: "auto", "cpu", "cuda", "cuda:1", …
        backend: What runs the network: "eager" (torch), "compiled" (torch's Inductor), "onnx" (ONNX Runtime),
            or "auto": the fastest on this machine, or "eager" until that is measured.
        trust_code: Allow a bundle whose backbone is a class outside the known packages; importing it runs its
            code.
        index: FAISS index of new collections: "Flat" (exact, the default) or any ``index_factory`` string.
        thumbnails: Side of stored thumbnails in pixels; 0 stores none.
        max_body_bytes: Largest request body.
        body_seconds: Longest time in which a client sends no byte of a body, or takes none of an answer.
        upload_seconds: Longest time for a whole body (imports have no limit).
        max_uploads: Most bodies that come in at once; beyond that, the slowest is ended.
        max_upload_bytes: Most bytes of bodies that are still coming in, of all together.
        max_connections: Most open connections; beyond that, the one that has been idle for longest is closed.
        head_seconds: Longest time a connection may be without a request, or take for the head of one.
        root_path: Path below which a proxy shows the service, such as /kindred; the proxy strips it.
        trusted_proxies: Addresses of proxies whose X-Forwarded headers are believed; none by default.
        max_batch: Most images or vectors in one request.
        max_k: Most neighbours per query.
        latency_budget_ms: An image that would wait longer than this is refused with 429.
        decode_workers: Threads that decode images; 0 means one a core.
        network_workers: Network passes that may run at the same time.
        network_threads: Threads of one network pass; 0 means half the cores, shared among the workers: the
            other half decodes.
        network_batch: Most images in one network pass.
        shutdown_seconds: How long requests in progress have to finish after a stop signal.
        recall_seconds: Pause between two measurements of the live index's recall; 0 turns it off.
        log_format: "json" for machines, "text" for people.
        log_level: Level of the service's own log.
    """

    model_config = SettingsConfigDict(env_prefix="KINDRED_", extra="forbid", frozen=True)

    bundle: Path = Path("runs/demo/bundle")
    store: Annotated[Path | str, BeforeValidator(_store_location)] = Path("runs/demo/store")
    milvus_token: SecretStr | None = None
    milvus_timeout: float = Field(30, gt=0)
    milvus_consistency: Literal["Strong", "Session"] = "Strong"
    collection: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    read_key: SecretStr | None = None
    write_key: SecretStr | None = None
    keys_file: Path | None = None
    public_reads: bool = False
    allow_without_key: bool = False
    allowed_hosts: tuple[Annotated[str, AfterValidator(_plain_host)], ...] = ()
    cors_origins: tuple[Annotated[str, AfterValidator(_plain_origin)], ...] = ()
    device: str = "auto"
    backend: Literal["auto", "eager", "compiled", "onnx"] = "auto"
    trust_code: bool = False
    index: str | None = None
    thumbnails: int = Field(160, ge=0, le=1024)
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    body_seconds: float = Field(30, gt=0)
    upload_seconds: float = Field(120, gt=0)
    max_uploads: int = Field(256, ge=1)
    max_upload_bytes: int = Field(512 * 2**20, ge=1024)
    max_connections: int = Field(4096, ge=1)
    head_seconds: float = Field(15, gt=0)
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9_.~-]+)*$")
    trusted_proxies: tuple[str, ...] = ()
    max_batch: int = Field(1024, ge=1)
    max_k: int = Field(1000, ge=1)
    latency_budget_ms: float = Field(1000, gt=0)
    decode_workers: int = Field(0, ge=0, le=256)
    network_workers: int = Field(1, ge=1, le=64)
    network_threads: int = Field(0, ge=0, le=256)
    network_batch: int = Field(32, ge=1, le=4096)
    shutdown_seconds: float = Field(10, ge=0)
    recall_seconds: float = Field(60, ge=0)
    log_format: Literal["json", "text"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic's signature)
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, mounted secrets, then the file that ``KINDRED_SETTINGS`` names."""
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings, file_secret_settings)
        file = os.environ.get("KINDRED_SETTINGS")
        if file:
            sources += (YamlConfigSettingsSource(settings_cls, yaml_file=file),)
        return sources

    @classmethod
    def read(cls, **arguments: Any) -> "Settings":
        """Settings from every source; ``arguments`` that are None count as not given.

        Raises:
            InputError: A value is unusable, a key unknown, or the settings file missing.
        """
        file = os.environ.get("KINDRED_SETTINGS")
        if file and not Path(file).is_file():
            raise InputError(f"KINDRED_SETTINGS: {file} is no file; name an existing YAML file or unset it")
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InputError(f"setting {name}: {first['msg']}") from error
        except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # no mapping, or no YAML
            raise InputError(f"settings file {file}: {error}") from error

    def cores(self) -> int:
        """CPU cores this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def threads_of_network(self) -> int:
        """Threads of one network pass."""
        return self.network_threads or max(1, self.cores() // 2 // self.network_workers)

    def is_loopback(self) -> bool:
        """Whether ``host`` is reachable from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_exposure(self) -> None:
        """Refuse to listen beyond this machine without keys.

        Raises:
            InputError: The address is not loopback and a key is missing.
        """
        if self.is_loopback() or self.allow_without_key:
            return
        read, write = self.keys()
        if not write:
            raise InputError(
                f"host {self.host}: reachable from other machines without a key; set KINDRED_READ_KEY and "
                "KINDRED_WRITE_KEY, or allow_without_key if the network is closed by other means"
            )
        if not read and not self.public_reads:
            raise InputError(
                f"host {self.host}: anyone could search; set KINDRED_READ_KEY, or public_reads to allow it"
            )

    def keys(self) -> tuple[list[bytes], list[bytes]]:
        """The keys for reading and for writing; those of the file as they are now.

        Raises:
            InputError: The file cannot be read, a line is something else, or it holds no key.
        """
        keys = {
            "read": [self.read_key.get_secret_value()] if self.read_key else [],
            "write": [self.write_key.get_secret_value()] if self.write_key else [],
        }
        if self.keys_file is not None:
            try:
                lines = self.keys_file.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"keys_file {self.keys_file}: cannot be read ({error})") from error
            for number, line in enumerate(lines, 1):
                words = line.partition("#")[0].split()
                if words and (len(words) != 2 or words[0] not in keys):
                    raise InputError(
                        f"keys_file {self.keys_file}: line {number} is neither 'read KEY' nor 'write KEY'"
                    )
                if words:
                    keys[words[0]].append(words[1])
            if not any(keys.values()):
                raise InputError(f"keys_file {self.keys_file}: holds no key; write 'read KEY' on a line")
        return [key.encode() for key in keys["read"]], [key.encode() for key in keys["write"]]
