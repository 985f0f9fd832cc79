"""Addresses in a configuration: only a few keys take one."""

import importlib.util
import re
from typing import Any

from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError

SCHEMES = {"file": None, "memory": None, "s3": "s3fs"}
"""The schemes that a mirror's address may have, by fsspec's name, each with the package it needs.

Only schemes that the project tests, and that take their credentials from the environment.
``memory`` ends with the process, and exists for the tests.
"""

ADDRESSES = frozenset({("tune", "storage")})
"""The keys that take an address, each with its command."""

_OF_POSTGRESQL: dict[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
}
DATABASES: dict[str, dict[str, tuple[str, ...]]] = {
    "sqlite": {},
    "sqlite+pysqlite": {},
    "postgresql": _OF_POSTGRESQL,
    "postgresql+psycopg": _OF_POSTGRESQL,
    "postgresql+psycopg2": _OF_POSTGRESQL,
    "mysql": {},
    "mysql+mysqldb": {},
    "mysql+pymysql": {},
}
"""The databases that ``storage`` may name, by SQLAlchemy's name, each with its parameters.

Any other dialect could run what its driver is told to, as ODBC does. Parameters can name files,
sockets, plugins and commands, so only these with these values are passed on.
"""


def refuse_address(key: str, value: Any) -> None:
    """Refuse an address, which Lightning would read or write over the network.

    Only the keys that name a run's mirror may hold one.
    """
    is_address = isinstance(value, str) and "://" in value
    if (key == "mirror" and value is not None) or (key == "resume" and is_address):
        if "${" not in str(value):  # it is looked at once more when its parts are known
            check_address(key, value)
    elif is_address:
        raise ConfigurationError(
            f"{key}={value}: an address, where a path of this machine is asked for"
        )


def check_address(key: str, address: Any) -> None:
    """Refuse what isn't the address of a mirror.

    Raises:
        ConfigurationError: names the key, and only such parts of the address as hold no secret.
    """
    scheme, separator, path = str(address).partition("://")
    if not isinstance(address, str) or not separator:
        raise ConfigurationError(
            f"{key}={address}: must be an address, as s3://bucket/folder or file:///folder"
        )
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"{key}={scheme}://…: must be one of {', '.join(f'{each}://' for each in SCHEMES)}"
        )
    rooted = path.removeprefix("/") if scheme == "file" else path
    if not re.fullmatch(r"(?:(?!\.\.?(?:/|$))[\w .=,+-]+(?:/|$))+", rooted) or (
        scheme == "file"
    ) == (rooted == path):
        raise ConfigurationError(
            f"{key}={scheme}://…: must be an address as s3://bucket/folder or file:///folder, "
            "of letters, digits and signs among . _ - = + and comma; "
            "credentials belong into the environment"
        )
    package = SCHEMES[scheme]
    if package and importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"{key}={address}: asks for {package}, which isn't installed; "
            f"pip install 'vae-lightning[{scheme}]'"
        )


def check_database(address: str) -> str:
    """Refuse what isn't the address of a database that a study can be kept in.

    Returns:
        The address without its password, to be shown.

    Raises:
        ConfigurationError: names only such parts of the address as hold no secret.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "storage: not the address of a database; write one like sqlite:///trials.db"
        ) from error
    if url.drivername not in DATABASES:
        raise ConfigurationError(
            f"storage={url.drivername}://…: must be one of "
            + ", ".join(f"{each}://" for each in DATABASES)
        )
    shown = url.set(query={}).render_as_string(hide_password=True)
    offered = DATABASES[url.drivername]
    for name, value in url.query.items():
        if name not in offered:
            known = f"only {', '.join(offered)}" if offered else "none"
            raise ConfigurationError(
                f"storage={shown}: takes no parameter {printable(name)}, {known}; leave it out"
            )
        if value not in offered[name]:
            raise ConfigurationError(
                f"storage={shown}: {name} must be one of {', '.join(offered[name])}"
            )
    database = url.database or ""
    if url.get_backend_name() == "sqlite":
        if database in ("", ":memory:") or database.startswith("file:"):
            raise ConfigurationError(
                f"storage={shown}: must name a file; write it like sqlite:///trials.db"
            )
    elif not re.fullmatch(r"[\w.-]+", database):
        raise ConfigurationError(
            f"storage={shown}: must name a database, by letters, digits and signs among . _ -; "
            "write it like postgresql://user@host/name"
        )
    return url.render_as_string(hide_password=True)
