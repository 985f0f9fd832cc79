"""Where the files of a data set are looked for."""

from pathlib import Path

import pytest

from vae_lightning.data.catalogue import data_folder


def test_an_address_is_no_data_folder():
    for address in ("s3://bucket/digits", "http://example.org/", "file:///digits"):
        with pytest.raises(
            ValueError,
            match=f"^dir={address}: an address, where a folder of this machine is asked for$",
        ):
            data_folder("mnist", address)


def test_the_default_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder("mnist", None).is_relative_to(Path.home())
    assert data_folder("mnist", "~/digits") == Path.home() / "digits" / "MNIST" / "raw"
