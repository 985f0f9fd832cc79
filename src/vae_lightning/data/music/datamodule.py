"""Melodies and chorales as data sets."""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data.batches import Seed
from vae_lightning.data.catalogue import SCORES, data_folder
from vae_lightning.data.datamodule import DataModule, File, Split
from vae_lightning.data.download import content_of, fetch
from vae_lightning.data.modality import Modality
from vae_lightning.data.music import corpus
from vae_lightning.data.music.events import END
from vae_lightning.data.music.modality import Music, Sets
from vae_lightning.data.music.scores import BAR, FIRST_PITCH
from vae_lightning.data.music.windows import transposed, windows_of, without_those_of
from vae_lightning.errors import DatasetUnavailable
from vae_lightning.models.base import DataSpec, arguments

MELODIES = Music(lowest=48, pitches=48, seconds_per_step=0.125)
CHORALES = Music(lowest=36, pitches=46, seconds_per_step=0.17)
JSB = Sets(lowest=43, pitches=54, seconds_per_step=0.6)

REACH = (-5, 6)
"""Semitones by which training windows are transposed."""

_TENTH = 10  # one tune in ten is tested, and one in ten of the others validated
_LONGEST = 160  # quarters of the longest piece of the benchmark

Directory = Annotated[str, Field(min_length=1)] | None


class MusicDataModule(DataModule):
    """Windows of scores, split by piece. How many there are is known when they have been read.

    Attributes:
        scores: in the catalogue, where they come from.
        music: what they are, for readers.
    """

    scores: ClassVar[str] = "music21"
    music: ClassVar[str]
    transpose: bool = False

    def __init__(
        self, name: str, spec: DataSpec, settings: dict[str, Any], dir: str | None
    ) -> None:
        """Take the name, the spec, the subclass's arguments, and the folder above the scores'."""
        given = ("batch_size", "eval_batch_size", "split_seed", "seed")
        super().__init__(
            name=name,
            spec=spec,
            sizes=None,
            settings=settings,
            **{key: settings[key] for key in given if key in settings},
        )
        self.folder = data_folder(self.scores, dir)

    def prepare_data(self) -> None:
        """Fetch the scores if they aren't there, verified by checksum, or check that they are."""
        fetch(self.scores, self.folder)

    @abstractmethod
    def read_splits(self) -> dict[Split, Tensor]:
        """Return the windows of each split, ``[N, T, V]``, int64."""

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        """The windows of each split."""
        return self.read_splits()

    @property
    def holds_out(self) -> bool:
        """Whether validation examples are held out: always."""
        return True

    def read(self, file: File) -> tuple[Tensor, Tensor | None]:
        """Return the windows of a file, those for validation behind those for training."""
        if file == "test":
            return self.splits["test"], None
        return torch.cat([self.splits["train"], self.splits["val"]]), None

    def setup(self, stage: str | None = None) -> None:
        """Read the scores, once."""
        if not self.x:
            train, val, test = (len(self.splits[each]) for each in ("train", "val", "test"))
            self.train_indices = torch.arange(train)
            # In the order of a file, windows of one piece would follow on each other.
            self.val_indices = train + self.split_order(val)
            self.test_indices = self.split_order(test)
        super().setup(stage)

    def drawing(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return what transposes training windows, if they are to be."""
        if not self.transpose:
            return None
        x = self.splits["train"].flatten(0, 1)
        onset = x >= FIRST_PITCH
        lowest = torch.where(onset, x, x.max()).amin(0)
        ranges = torch.stack([lowest, torch.where(onset, x, 0).amax(0)])
        return lambda batch, generator: transposed(batch, generator, REACH, ranges)


class Melodies(MusicDataModule):
    """Windows of folk tunes, ``[16 · bars, 1]``."""

    modality: ClassVar[Modality] = MELODIES
    music: ClassVar[str] = "folk tunes"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        collections: Annotated[Sequence[corpus.Collection], Field(min_length=1)] = (
            "ryan",
            "oneill",
            "aird",
        ),
        bars: Annotated[int, Field(ge=1, le=16)] = 2,
        transpose: bool = False,
        dir: Directory = None,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 1000,
        split_seed: Seed = 0,
        seed: Seed = 1,
    ) -> None:
        """Choose the tunes; nothing is read before ``setup``.

        Of the tunes one in ten is tested, whatever the seeds, and one in ten of the others
        validated. Windows that training has too, in whatever key, are left out there.

        Args:
            collections: ``ryan``, ``oneill``, ``aird``; ``essen``, which may not be used
                commercially; ``exercises``, made up here and in need of no download.
            bars: of 4/4 in a window.
            transpose: whether training windows are transposed at random.
            dir: where the scores are or will be put; by default the user's cache folder.
            batch_size: windows per training step of each process.
            eval_batch_size: windows per step of validation and test.
            split_seed: which tunes are validated.
            seed: seed of the order and of the transpositions.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        settings = arguments(locals(), "dir")
        settings["collections"] = list(collections)
        self.collections, self.bars, self.transpose = tuple(collections), bars, transpose
        spec = DataSpec((bars * BAR, 1), "tokens", FIRST_PITCH + MELODIES.pitches)
        super().__init__("melodies", spec, settings, dir)

    def prepare_data(self) -> None:
        """Fetch the scores if they aren't there, verified by checksum; exercises need none."""
        if set(self.collections) - {"exercises"}:
            super().prepare_data()

    def read_splits(self) -> dict[Split, Tensor]:
        """Read the tunes, and split them."""
        try:
            tunes = [
                windows
                for bars in corpus.tunes(self.folder, self.collections)
                if len(windows := windows_of([bars], self.bars, MELODIES.lowest, MELODIES.pitches))
            ]
        except FileNotFoundError as error:
            raise DatasetUnavailable(f"{error.filename} is missing") from error
        tested = np.random.RandomState(0).permutation(len(tunes))[: len(tunes) // _TENTH]
        others = np.setdiff1d(np.arange(len(tunes)), tested)
        shuffled = np.random.RandomState(self.split_seed).permutation(others)
        validated, trained = np.split(shuffled, [len(others) // _TENTH])
        train, val, test = (
            torch.cat([tunes[number] for number in np.sort(numbers)])
            for numbers in (trained, validated, tested)
        )
        return {
            "train": train,
            "val": without_those_of(val, [train]),
            "test": without_those_of(test, [train, val]),
        }


class Chorales(MusicDataModule):
    """Windows of Bach's four-part chorales, ``[16 · bars, 4]``."""

    modality: ClassVar[Modality] = CHORALES
    music: ClassVar[str] = "Bach's chorales"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        bars: Literal[1, 2, 4, 8, 16] = 4,
        transpose: bool = True,
        dir: Directory = None,
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt = 500,
        seed: Seed = 1,
    ) -> None:
        """Choose the windows; nothing is read before ``setup``.

        Args:
            bars: of 4/4 in a window.
            transpose: whether training windows are transposed at random, by −5 to +6 semitones
                within the range of each voice.
            dir: where the scores are or will be put; by default the user's cache folder.
            batch_size: windows per training step of each process.
            eval_batch_size: windows per step of validation and test.
            seed: seed of the order and of the transpositions.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        settings = arguments(locals(), "dir")
        self.bars, self.transpose = bars, transpose
        spec = DataSpec((bars * BAR, 4), "tokens", FIRST_PITCH + CHORALES.pitches)
        super().__init__("chorales", spec, settings, dir)

    def read_splits(self) -> dict[Split, Tensor]:
        """Read the chorales."""
        parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
        try:
            for part, voices in corpus.chorales(self.folder):
                windows = windows_of(voices, self.bars, CHORALES.lowest, CHORALES.pitches)
                parts[part].append(windows)
        except FileNotFoundError as error:
            raise DatasetUnavailable(f"{error.filename} is missing") from error
        train, val, test = (torch.cat(each) for each in parts.values())
        return {"train": train, "val": val, "test": test}


class JSBChorales(MusicDataModule):
    """The benchmark of sequence models: sets of pitches per quarter, ``[160, 5]``, whole pieces.

    Each step lists its pitches in ascending order and an end. Steps behind the end of a piece list
    nothing.
    """

    modality: ClassVar[Modality] = JSB
    scores: ClassVar[str] = "jsb_chorales"
    music: ClassVar[str] = "Bach's chorales"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        transpose: bool = True,
        dir: Directory = None,
        batch_size: PositiveInt = 16,
        eval_batch_size: PositiveInt = 100,
        seed: Seed = 1,
    ) -> None:
        """Choose the file; nothing is read before ``setup``.

        Args:
            transpose: whether training pieces are transposed at random, by −5 to +6 semitones.
            dir: the folder above that of the file.
            batch_size: pieces per training step of each process.
            eval_batch_size: pieces per step of validation and test.
            seed: seed of the order and of the transpositions.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        settings = arguments(locals(), "dir")
        self.transpose = transpose
        spec = DataSpec((_LONGEST, 5), "sets", FIRST_PITCH + JSB.pitches)
        super().__init__("jsb_chorales", spec, settings, dir)

    def read_splits(self) -> dict[Split, Tensor]:
        """Read the pieces."""
        ((name, digest),) = SCORES[self.scores].files.items()
        parts = json.loads(content_of(self.folder / name, digest))
        train, val, test = (
            torch.stack([_listed(piece) for piece in parts[part]])
            for part in ("train", "valid", "test")
        )
        return {"train": train, "val": val, "test": test}

    def drawing(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return what transposes training pieces, within the pitches of all of them."""
        if not self.transpose:
            return None
        ranges = torch.tensor([FIRST_PITCH, FIRST_PITCH + JSB.pitches - 1])[:, None]
        return lambda batch, generator: transposed(batch, generator, REACH, ranges)


def _listed(piece: Sequence[Sequence[int]]) -> Tensor:
    tokens = torch.zeros(_LONGEST, 5, dtype=torch.int64)
    for step, pitches in enumerate(piece):
        listed = [FIRST_PITCH + pitch - JSB.lowest for pitch in sorted(set(pitches))]
        tokens[step, : len(listed) + 1] = torch.tensor([*listed, END])
    return tokens
