"""Addresses in a configuration: only a few keys take one."""

import importlib.util
import re
from typing import Any

from vae_lightning.errors import ConfigurationError

SCHEMES = {"file": None, "memory": None, "s3": "s3fs"}
"""The schemes that a mirror's address may have, by fsspec's name, each with the package it needs.

Only schemes that the project tests, and that take their credentials from the environment.
``memory`` ends with the process, and exists for the tests.
"""

ADDRESSES = frozenset({("tune", "storage")})
"""The keys that take an address, each with its command."""


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
