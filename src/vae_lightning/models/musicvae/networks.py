"""The networks of MusicVAE: an encoder of sequences, decoders, and what a step looks like.

Roberts et al. 2018, "A Hierarchical Latent Vector Model for Learning Long-Term Structure in Music"
(arXiv:1803.05428). Shapes: ``B`` sequences of ``T`` steps of ``V`` voices, ``K`` tokens, ``D``
latents, ``E`` numbers of a step's embedding, ``H`` of a state.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HOLD, REST, FIRST_PITCH = 0, 1, 2
"""Tokens of a voice: what was there goes on; silence begins; the first onset."""

NOTHING, END = 0, 1
"""Tokens of a step that lists its pitches: after the end; the end."""

_IMPOSSIBLE = -1e9  # a logit

State = tuple[Tensor, Tensor]
"""The state of an LSTM of one layer, ``[1, B, H]`` twice."""


class StepEmbedding(nn.Module):
    """A step as numbers: the sum of its voices' tokens and of its place in the bar."""

    first: Tensor

    def __init__(self, voices: int, vocabulary: int, places: int, dim: int) -> None:
        """Take V, K, how many places of a bar there are, and E."""
        super().__init__()
        self.vocabulary, self.places = vocabulary, places
        self.tokens = nn.Embedding(voices * vocabulary, dim)
        self.place = nn.Embedding(places, dim)
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(voices))
        self.register_buffer("first", torch.arange(voices) * vocabulary, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens ``[..., V]`` as numbers ``[..., E]``."""
        embedded: Tensor = self.tokens(x + self.first).sum(-2)
        return embedded

    def at(self, step: Tensor) -> Tensor:
        """Return the places of steps ``[...]``, counted from 0, as numbers ``[..., E]``."""
        place: Tensor = self.place(step % self.places)
        return place


def is_there(x: Tensor, lists_sets: bool) -> Tensor:
    """Return which steps of sequences ``[B, T, V]`` there are, not after the end: ``[B, T]``."""
    return x[..., 0] != NOTHING if lists_sets else torch.ones_like(x[..., 0], dtype=torch.bool)


class Encoder(nn.Module):
    """Sequences to mean and standard deviation of q(z|x): an LSTM in both directions, pooled.

    The states are averaged over each of some parts of equal length.
    """

    def __init__(
        self,
        embedding: StepEmbedding,
        dim: int,
        hidden: int,
        latent_dim: int,
        parts: int,
        lists_sets: bool,
    ) -> None:
        """Take how steps are embedded, E, H, D, how many parts, and whether steps list pitches."""
        super().__init__()
        self.embedding, self.parts, self.lists_sets = embedding, parts, lists_sets
        self.lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden * parts, 2 * latent_dim)
        with torch.no_grad():
            self.head.weight.mul_(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc and scale, ``[B, D]``, of sequences ``[B, T, V]``."""
        steps = torch.arange(x.shape[1], device=x.device)
        states = self.lstm(self.embedding(x) + self.embedding.at(steps))[0]
        there = is_there(x, self.lists_sets).view(
            x.shape[0], self.parts, -1
        )  # len(x) would fix it in an export
        there = there.to(torch.float32)  # torch 2.7 exports no quotient of integers
        weight = (there / there.sum(2, keepdim=True).clamp(min=1)).to(states.dtype)
        pooled = (states.reshape(*there.shape, -1) * weight[..., None]).sum(2)
        loc, raw = self.head(pooled.flatten(1)).chunk(2, dim=-1)
        return loc, F.softplus(raw + _ONE) + 1e-4


_ONE = math.log(math.expm1(1.0))  # softplus of this is 1: q(z|x) starts near the prior


class Voices(nn.Module):
    """The tokens of a step, one voice after another: p(x_v | state, x_1 … x_{v−1})."""

    later: Tensor
    first: Tensor

    def __init__(self, voices: int, vocabulary: int, hidden: int, width: int) -> None:
        """Take V, K, H and the width of the layer between."""
        super().__init__()
        self.voices, self.vocabulary = voices, vocabulary
        self.state = nn.Linear(hidden, voices * width)
        self.lower: nn.Embedding | None = None
        if voices > 1:  # what a voice's token adds for each later voice
            self.lower = nn.Embedding((voices - 1) * vocabulary, voices * width)
            nn.init.normal_(self.lower.weight, std=0.1)
            later = torch.ones(voices, voices).tril(-1)[:, :-1].t()
            self.register_buffer("later", later.contiguous(), persistent=False)  # [u, v]: u below v
            self.register_buffer("first", torch.arange(voices - 1) * vocabulary, persistent=False)
        self.head = nn.Linear(width, vocabulary)
        self.own = nn.Parameter(torch.zeros(voices, vocabulary))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """Return logits ``[..., V, K]`` for states ``[..., H]`` at tokens ``[..., V]``.

        A voice's logits depend on the tokens of the voices before it only.
        """
        width = self.state.out_features // self.voices
        hidden = self.state(state).view(*state.shape[:-1], self.voices, width)
        if self.lower is not None:
            known = self.lower(x[..., :-1] + self.first).view(*x.shape[:-1], -1, self.voices, width)
            hidden = hidden + (known * self.later[..., None]).sum(-3)
        logits: Tensor = self.head(F.relu(hidden)) + self.own
        return logits


class Guide(nn.Module):
    """What the decoder is told of each part of a sequence: a linear map of the latent for each."""

    def __init__(self, latent_dim: int, parts: int, dim: int) -> None:
        """Take D, how many parts, and how many numbers of each."""
        super().__init__()
        self.parts = parts
        self.map = nn.Linear(latent_dim, parts * dim)

    def forward(self, z: Tensor) -> Tensor:
        """Return ``[B, parts, dim]`` for latents ``[B, D]``."""
        guides: Tensor = self.map(z).view(z.shape[0], self.parts, -1)
        return guides


class Conductor(nn.Module):
    """What a hierarchical decoder is told of each part: the states of an LSTM, begun by z."""

    def __init__(self, latent_dim: int, parts: int, dim: int) -> None:
        """Take D, how many parts, and the size of the state."""
        super().__init__()
        self.parts = parts
        self.start = nn.Linear(latent_dim, 2 * dim)
        self.lstm = nn.LSTM(1, dim, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        """Return ``[B, parts, dim]`` for latents ``[B, D]``."""
        hidden, cell = torch.tanh(self.start(z)).chunk(2, dim=-1)
        nothing = z.new_zeros(z.shape[0], self.parts, 1)
        states: Tensor = self.lstm(nothing, (hidden[None].contiguous(), cell[None].contiguous()))[0]
        return states


class Steps(nn.Module):
    """An LSTM over the steps. What it is told in each part comes from the latent.

    ``flat``: by a linear map for each part. ``hierarchical``: parts are bars, and an LSTM over
    them, the conductor, makes one state for each. The decoder's LSTM starts anew from it in each
    bar, and sees no more of the bars before than their last step.
    """

    def __init__(
        self,
        embedding: StepEmbedding,
        dim: int,
        hidden: int,
        guide: Guide | Conductor,
        guide_dim: int,
        part: int,
    ) -> None:
        """Take how steps are embedded, E, H, the guide and its size, and the steps of a part."""
        super().__init__()
        self.embedding, self.guide, self.part = embedding, guide, part
        self.start = nn.Linear(guide_dim, 2 * hidden)
        self.lstm = nn.LSTM(dim + guide_dim, hidden, batch_first=True)
        self.begin = nn.Parameter(torch.zeros(dim))  # in place of a step before the first
        self.starts_anew = isinstance(guide, Conductor)

    def first_state(self, told: Tensor) -> State:
        """Return the state before the first step that is told ``[B, told]``."""
        hidden, cell = torch.tanh(self.start(told)).chunk(2, dim=-1)
        return hidden[None].contiguous(), cell[None].contiguous()

    def forward(self, x: Tensor, z: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the states at each step, ``[B, T, H]``, given the steps before it.

        Args:
            x: tokens ``[B, T, V]``.
            z: latents ``[B, D]``.
            kept: 1 where a step is seen as the one before, ``[B, T]``, and 0 where it is not; None:
                all are.
        """
        batch, steps = x.shape[:2]
        before = self.embedding(x[:, :-1])
        if kept is not None:
            before = before * kept[:, :-1, None].to(before.dtype)
        before = torch.cat([self.begin.expand(batch, 1, -1), before], 1)
        before = before + self.embedding.at(torch.arange(steps, device=x.device))
        told = self.guide(z)
        inputs = torch.cat([before, told.repeat_interleave(self.part, 1)], -1)
        if self.starts_anew:
            parts = inputs.reshape(batch * (steps // self.part), self.part, -1)
            states: Tensor = self.lstm(parts, self.first_state(told.flatten(0, 1)))[0]
            return states.reshape(batch, steps, -1)
        states = self.lstm(inputs, self.first_state(told[:, 0]))[0]
        return states

    def next_state(
        self, before: Tensor | None, step: int, told: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Return the state at one step, ``[B, H]``, and that which the next one starts from.

        Args:
            before: tokens of the step before, ``[B, V]``; None: this is the first.
            step: its number.
            told: by the guide, of each part, ``[B, parts, guide]``.
            state: of the LSTM after the step before.
        """
        of_part = told[:, step // self.part]
        if self.starts_anew and step % self.part == 0:
            state = self.first_state(of_part)
        seen = self.begin.expand(len(told), -1) if before is None else self.embedding(before)
        seen = seen + self.embedding.at(torch.tensor(step, device=told.device))
        output, state = self.lstm(torch.cat([seen, of_part], -1)[:, None], state)
        return output[:, 0], state


class Decoder(nn.Module):
    """Tokens by their logits, of which none has any that can't be.

    A voice can't hold in the first step. A step that lists its pitches does so in ascending order.
    """

    no_hold: Tensor
    follows: Tensor

    def __init__(self, steps: Steps, voices: Voices, lists_sets: bool) -> None:
        """Take the LSTM, what makes tokens of its states, and whether steps list pitches."""
        super().__init__()
        self.steps, self.voices, self.lists_sets = steps, voices, lists_sets
        no_hold = torch.arange(voices.vocabulary) == HOLD
        self.register_buffer("no_hold", no_hold, persistent=False)
        self.register_buffer("follows", _follows(voices.vocabulary), persistent=False)

    def forward(
        self, x: Tensor, z: Tensor, kept: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits of each token given those before it, ``[B, T, V, K]``.

        Args:
            x: tokens ``[B, T, V]``.
            z: latents ``[B, D]``.
            kept: 1 where a step is seen as the one before, ``[B, T]``; None: all are.
            mask: what states are multiplied by, ``[B, H]``; None: nothing.
        """
        states = self.steps(x, z, kept)
        if mask is not None:
            states = states * mask[:, None]
        logits = self.voices(states, x).to(z.dtype)
        if self.lists_sets:
            return self._in_order(logits, x)
        first = logits[:, :1].masked_fill(self.no_hold, _IMPOSSIBLE)
        return torch.cat([first, logits[:, 1:]], 1)

    def of_step(self, state: Tensor, x: Tensor, step: int) -> Tensor:
        """Return the logits of one step, ``[B, V, K]``, by its state and the tokens so far."""
        logits: Tensor = self.voices(state, x)
        if self.lists_sets:
            return self._in_order(logits, x)
        return logits if step else logits.masked_fill(self.no_hold, _IMPOSSIBLE)

    def _in_order(self, logits: Tensor, x: Tensor) -> Tensor:
        before = F.pad(x[..., :-1], (1, 0), value=len(self.follows) - 1)
        allowed = self.follows[before]
        # After as many pitches as there is room for, the end.
        full = F.pad(before[..., -1:] >= FIRST_PITCH, (x.shape[-1] - 1, 0))
        is_pitch = torch.arange(logits.shape[-1], device=x.device) >= FIRST_PITCH
        return logits.masked_fill(~allowed | (full[..., None] & is_pitch), _IMPOSSIBLE)


def _follows(vocabulary: int) -> Tensor:
    """Return which tokens may follow which in a step that lists pitches, ``[K + 1, K]``.

    The last row is that of the first token.
    """
    tokens = torch.arange(vocabulary)
    rows = torch.cat([tokens, torch.tensor([END])])[:, None]
    follows = (tokens > rows) | (tokens == END)
    follows[END] = follows[NOTHING] = tokens == NOTHING
    return follows
