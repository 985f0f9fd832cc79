"""A folder of the user's own pictures."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from platformdirs import user_cache_path
from pydantic import ConfigDict, Field, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.data.batches import Seed
from vae_lightning.data.datamodule import Binarization, Split
from vae_lightning.data.own import (
    SPLITS,
    OwnData,
    TestShare,
    ValidationShare,
    digest_of,
    require_room,
)
from vae_lightning.data.pictures import Background, Fit, Form, files_of, looks, read_pictures
from vae_lightning.errors import DatasetUnavailable
from vae_lightning.models.base import DataSpec, arguments

log = logging.getLogger(__name__)

Side = Annotated[int, Field(ge=1, le=4096)]


class FolderDataModule(OwnData):
    """Pictures of a folder, of any size and kind, ``[C, H, W]``.

    Subfolders are labels, unless some pictures lie beside them. Subfolders ``train``, ``val`` (or
    ``valid``, ``validation``) and ``test`` are splits, and hold the subfolders of the labels.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        dir: Annotated[str, Field(min_length=1)],
        size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = 28,
        channels: Literal["auto", 1, 3] = "auto",
        fit: Fit = "crop",
        background: Background = "black",
        invert: bool | Literal["auto"] = "auto",
        val_share: ValidationShare = 0.1,
        test_share: TestShare = 0.1,
        memory_mb: PositiveInt = 4000,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 1000,
        split_seed: Seed = 0,
        binarization: Binarization = "none",
        dequantize: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Find the pictures, and choose the splits; all are read by ``prepare_data``.

        Args:
            dir: the folder. Nothing is written into it.
            size: the side that the pictures are brought to, or height and width.
            channels: 1 is grey, 3 red, green and blue; ``auto``: 3 where pictures have colours.
            fit: how a picture of other proportions is brought to that size: ``crop``, ``pad`` or
                ``stretch``.
            background: what shows through transparent pixels.
            invert: whether to turn dark ink on bright paper into bright ink on dark; ``auto``: for
                grey pictures that are clearly so.
            val_share: the share that is held out for validation where there is no folder ``val``.
            test_share: the share that is tested where there is no folder ``test``.
            memory_mb: how much memory the pictures may take.
            batch_size: as in ``DataModule``, and so all that follow.
            eval_batch_size: images per step of validation and test.
            split_seed: which pictures are held out.
            binarization: ``none``, ``stochastic`` or ``static``.
            dequantize: spread each grey level over its 256th of [0, 1].
            seed: seed of the order in which training images are visited.

        Raises:
            ValueError: there are no pictures, or values don't go together.
        """
        settings = arguments(locals(), "dir")
        self.folder = Path(expanded(dir))
        try:
            self.files = files_of(self.folder)
        except ValueError as error:
            raise ValueError(f"dir={printable(dir)}: {error}") from error
        self.remarks: list[str] = []
        if channels == "auto" or invert == "auto":
            has_colours, is_dark_on_bright = looks(self.files, background)
            if channels == "auto":
                channels = 3 if has_colours else 1
                self.remarks.append(f"data.channels={channels}")
            if invert == "auto":
                invert = channels == 1 and is_dark_on_bright
                self.remarks += ["data.invert=true, for they are dark on bright"] * invert
        settings |= {"channels": channels, "invert": invert}
        height, width = (size, size) if isinstance(size, int) else size
        self.form = Form((channels, height, width), fit, background, invert)
        require_room(len(self.files), self.form.shape, memory_mb)
        given, self.labels, names = _arranged(self.files, self.folder)
        if names:
            shown = [*names[:5], *["…"] * (len(names) > 5)]
            self.remarks.append(f"labels {', '.join(shown)}")
        if len(given) > 1:
            self.remarks.append(f"splits {', '.join(given)}")
        super().__init__(
            name=printable(self.folder.resolve().name),
            spec=DataSpec(tuple(self.form.shape), "unit", class_names=names),
            settings=settings,
            given=given,
        )

    def prepare_data(self) -> None:
        """Say what was chosen, and read the pictures."""
        if self.remarks:
            said = "; ".join(self.remarks)
            log.info("%s: %s pictures; %s", self.name, f"{len(self.files):,}", said)
            self.remarks = []  # Lightning calls this again
        super().prepare_data()

    def read_all(self) -> tuple[Tensor, Tensor | None, str]:
        """Return all pictures, their labels, and a digest of them.

        They are read from a file in the user's cache folder, if names, sizes and times of the
        pictures are those that they had when it was written.

        Raises:
            DatasetUnavailable: a picture can't be read.
        """
        labels = torch.tensor(self.labels) if self.labels else None
        cache = _cache(self.files, self.form)
        pictures = _read_cache(cache, (len(self.files), *self.form.shape))
        if pictures is None:
            try:
                pictures = read_pictures(self.files, self.form)
            except ValueError as error:
                raise DatasetUnavailable(f"data.dir={printable(self.folder)}: {error}") from error
            _write_cache(cache, pictures)
        return pictures, labels, digest_of(pictures, labels)


def _arranged(
    files: Sequence[Path], folder: Path
) -> tuple[dict[Split, list[int]], list[int], tuple[str, ...]]:
    """Return the places of the pictures of each split, their labels, and the labels' names."""
    parts = [list(file.relative_to(folder).parts[:-1]) for file in files]
    for each in parts:
        if each and each[0] in ("valid", "validation"):
            each[0] = "val"
    tops = {each[0] if each else "" for each in parts}
    others = sorted(tops - set(SPLITS))
    if "train" in tops and tops & {"val", "test"} and others:
        beside = ", ".join(map(printable, filter(None, others))) or "pictures of no folder"
        raise ValueError(
            f"dir={printable(folder)}: {beside} beside the splits train, val, test; move them away"
        )
    if "train" in tops and not others:
        of_split = [each.pop(0) for each in parts]
    else:
        of_split = ["train"] * len(files)
    given: dict[Split, list[int]] = {
        split: [number for number, each in enumerate(of_split) if each == split]
        for split in SPLITS
        if split in of_split
    }
    found = sorted({each[0] if each else "" for each in parts})
    if len(found) < 2 or "" in found:
        return given, [], ()
    return given, [found.index(each[0]) for each in parts], tuple(map(printable, found))


# -- the cache ---------------------------------------------------------------------------------


def _cache(files: Sequence[Path], form: Form) -> Path:
    """Return where pictures are kept once they have been read: by names, sizes and times."""
    stats = [(str(file.absolute()), file.stat()) for file in files]
    known = [(name, each.st_size, each.st_mtime_ns) for name, each in stats]
    shape = [*form.shape, form.fit, form.background, form.invert]
    key = hashlib.sha256(json.dumps([shape, known]).encode()).hexdigest()
    return user_cache_path("vae_lightning", appauthor=False) / "pictures" / f"{key[:32]}.npz"


def _read_cache(file: Path, shape: Sequence[int]) -> Tensor | None:
    """Return what a cache holds; None where there is none, or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as content:
            pictures = torch.from_numpy(content["pictures"])  # the zip's checksum is verified
    except Exception:  # what a damaged file can make NumPy raise has no end
        return None
    is_right = pictures.shape == torch.Size(shape) and pictures.dtype == torch.uint8
    return pictures if is_right else None


def _write_cache(file: Path, pictures: Tensor) -> None:
    """Write a cache; where that isn't possible the pictures are read anew the next time."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as written:
            temporary = written.name
            np.savez(written, pictures=pictures.numpy())
        os.replace(temporary, file)
    except OSError as error:
        log.warning("%s can't be written (%s): the pictures aren't kept", file, error.strerror)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
