"""How music is looked at, written, read and heard."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.data.modality import png
from vae_lightning.data.music import events
from vae_lightning.data.music.midi import LARGEST, midi, read_windows
from vae_lightning.data.music.scores import BAR
from vae_lightning.data.music.sound import synthesize, wav
from vae_lightning.data.pictures import files_of
from vae_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)

_STEP, _ROW, _GAP = 3, 2, 4  # pixels
_PAPER, _BAR_LINE, _FRAME = 1.0, 0.85, 0.6
_COLOURS = ((0.10, 0.35, 0.70), (0.80, 0.35, 0.10), (0.15, 0.55, 0.30), (0.50, 0.25, 0.60))
_HELD = 0.45  # how much paler than its onset a held note is


class Music:
    """Windows of music ``[T, V]``: voices of which each step holds, rests or begins a pitch.

    Attributes:
        noun: what figures are per.
        lowest: the pitch of the first token of an onset.
        pitches: how many there are from there on.
        seconds_per_step: the tempo of what is written.
    """

    noun = "sequence"

    def __init__(self, lowest: int, pitches: int, seconds_per_step: float) -> None:
        """Take the pitches that there are, and the tempo."""
        self.lowest, self.pitches = lowest, pitches
        self.seconds_per_step = seconds_per_step

    def events(self, x: Tensor) -> list[events.Event]:
        """Return the notes of an example."""
        return events.of_voices(x.round().long(), self.lowest)

    def length(self, x: Tensor) -> int:
        """Return how many steps of an example there are."""
        return len(x)

    def picture(self, x: Tensor, columns: int) -> Tensor:
        """Draw examples ``[n, T, V]`` as piano rolls in rows, ``[3, H, W]`` in [0, 1]."""
        rolls = torch.stack([self._roll(example) for example in x.cpu()])
        rows = -(-len(rolls) // columns)
        height, width = (side + _GAP for side in rolls.shape[-2:])
        sheet = torch.full((3, rows * height + _GAP, columns * width + _GAP), _FRAME)
        for number, roll in enumerate(rolls):
            top = number // columns * height + _GAP
            left = number % columns * width + _GAP
            sheet[:, top : top + height - _GAP, left : left + width - _GAP] = roll
        return sheet

    def _roll(self, example: Tensor) -> Tensor:
        """Return one piano roll, ``[3, H, W]``: time to the right, pitch upwards."""
        roll = torch.full((3, self.pitches * _ROW, len(example) * _STEP), _PAPER)
        roll[:, :, :: BAR * _STEP] = _BAR_LINE
        for start, end, pitch, voice in self.events(example):
            colour = torch.tensor(_COLOURS[voice % len(_COLOURS)])[:, None, None]
            top = (self.lowest + self.pitches - 1 - pitch) * _ROW
            held = torch.lerp(colour, torch.ones(()), _HELD)
            roll[:, top : top + _ROW, start * _STEP : end * _STEP] = held
            roll[:, top : top + _ROW, start * _STEP : start * _STEP + _STEP - 1] = colour
        return roll

    @property
    def formats(self) -> Mapping[str, Callable[[Tensor], bytes]]:
        """What makes a file of an example: MIDI, sound, a piano roll."""
        return {"mid": self.midi, "wav": self.wav, "png": lambda x: png(self.picture(x[None], 1))}

    def midi(self, x: Tensor) -> bytes:
        """Return an example as the content of a MIDI file."""
        return midi(self.events(x), self.length(x), self.seconds_per_step)

    def sound(self, x: Tensor) -> np.ndarray:
        """Return the sound of an example, ``[samples]`` in [−1, 1], ``sound.RATE`` a second."""
        return synthesize(self.events(x), self.length(x), self.seconds_per_step)

    def wav(self, x: Tensor) -> bytes:
        """Return the sound of an example as the content of a WAV file."""
        return wav(self.sound(x))

    def read_midi(self, content: bytes, name: str, shape: Sequence[int]) -> Tensor:
        """Return the windows of a MIDI file, ``[n, T, V]``; see ``midi.read_windows``."""
        return read_windows(content, name, shape, self.lowest, self.pitches)

    def read(
        self, folder: Path, shape: Sequence[int], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Tensor, list[str]]:
        """Read the MIDI files of a folder and its subfolders, or one file, into windows.

        Returns:
            Tokens ``[n, T, V]``, int64, and ``<file>:<number of the window>`` for each.

        Raises:
            ValueError: there are none, or none can be read. One of several that can't be read is
                left out, with a line.
        """
        folder = Path(expanded(str(folder)))
        if not folder.exists():
            raise ValueError(f"{printable(folder)}: not found")
        files = [folder]
        if folder.is_dir():
            files = files_of(folder, {".mid", ".midi"}, "MIDI files")
        windows, names, mistakes = [], [], []
        for file in files:
            with file.open("rb") as opened:
                content = opened.read(LARGEST + 1)
            try:
                found = self.read_midi(content, printable(file), shape)
            except ConfigurationError:
                raise
            except ValueError as error:
                mistakes.append(str(error))
                continue
            windows.append(found)
            name = file.relative_to(folder) if file != folder else file.name
            names += [f"{name}:{number}" for number in range(1, len(found) + 1)]
        if not windows:
            raise ValueError("; ".join(mistakes[:3]))
        for mistake in mistakes:
            log.warning("left out: %s", mistake)
        return torch.cat(windows), names


class Sets(Music):
    """Pieces ``[T, P]`` whose steps list their pitches in ascending order, without voices."""

    noun = "piece"

    def events(self, x: Tensor) -> list[events.Event]:
        """Return the notes of an example; a pitch of the step before goes on.

        What fills a piece up is left out, so that pieces one after another have no gaps.
        """
        return events.of_sets(x[x[:, 0] != events.NOTHING].round().long(), self.lowest)

    def length(self, x: Tensor) -> int:
        """Return how many steps of an example there are, without what fills it up."""
        return int((x[:, 0] != events.NOTHING).sum())

    def read(
        self, folder: Path, shape: Sequence[int], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Tensor, list[str]]:
        """Refuse: these pieces come from one file only."""
        raise ValueError("this model reads its own data only; use one of data=chorales")
