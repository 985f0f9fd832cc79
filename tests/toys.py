"""Models and data that the package has never heard of, for the test that it treats them as its own.

They are as a user would write them: a latent model whose posterior has no closed-form KL, a
discrete model, and one of sequences of tokens that has no codes at all.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent
from torch.nn import functional as F

from vae_lightning.data.datamodule import DataModule
from vae_lightning.models.base import (
    Batch,
    DataSpec,
    DiscreteModel,
    Export,
    Figure,
    LatentModel,
    Model,
    arguments,
)
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.noise import keyed_generator

# -- a latent model of 3 × 8 × 8 pictures ---------------------------------------------------------


class Skewed:
    """z = m + s · sinh(ε): a distribution with a density, and neither a mean at hand nor a KL."""

    def __init__(self, middle: Tensor, spread: Tensor) -> None:
        self.middle, self.spread = middle, spread

    def draw(self, noise, samples=1, temperature=1.0):
        drawn = noise.normal(self.middle.shape[-1], samples=samples).to(self.middle)
        return self.middle + self.spread * torch.sinh(temperature * drawn)

    def log_prob(self, value):
        scaled = (value - self.middle) / self.spread
        drawn = torch.asinh(scaled)
        density = torch.distributions.Normal(0.0, 1.0).log_prob(drawn)
        return (density - self.spread.log() - 0.5 * torch.log1p(scaled.square())).sum(-1)


class SkewedVAE(LatentModel):
    """A linear VAE of colour pictures: prior, posterior, decoder and point, and nothing else."""

    quantity = "mass"
    meaning = "log-likelihoods, were the pixels black or white"

    def __init__(self, data: DataSpec, latent_dim: int = 2) -> None:
        super().__init__(data, arguments(locals(), "data"))
        pixels = torch.Size(data.shape).numel()
        self.latent_dim = latent_dim
        self.encoder = nn.Linear(pixels, 2 * latent_dim)
        self.decoder = nn.Linear(latent_dim, pixels)
        self.register_buffer("zeros", torch.zeros(latent_dim))

    def prior(self, y=None):
        return DiagonalNormal(self.zeros, torch.ones_like(self.zeros))

    def posterior(self, batch):
        middle, raw = self.encoder(batch.x.flatten(1)).chunk(2, dim=-1)
        return Skewed(middle, 0.05 + F.softplus(raw - 1))

    def likelihood(self, z):
        logits = self.decoder(z).unflatten(-1, self.data.shape)
        return Independent(Bernoulli(logits=logits, validate_args=False), 3)

    def log_likelihood(self, batch, z):
        return self.likelihood(z).log_prob(batch.x)

    def decode(self, z, y=None):
        return self.likelihood(z).mean

    def point(self, batch):
        return self.posterior(batch).middle

    def exports(self):
        z = torch.linspace(-1, 1, 33 * self.latent_dim).view(33, self.latent_dim)
        network = nn.Sequential(self.decoder, nn.Sigmoid(), nn.Unflatten(1, self.data.shape))
        return {"decoder": Export(network, {"z": z}, ["image"], "the mean of p(x|z)")}


# -- a discrete model of the same pictures --------------------------------------------------------


class Clusters(DiscreteModel):
    """One code a picture: the nearest of K mean pictures, which move by their running means.

    Its figure is an error, so lower is better. ``after_step`` moves what no gradient reaches; a
    scale is learnt by gradients, so that an optimiser has something to do.
    """

    terms: ClassVar = ("error",)
    figures: ClassVar = {
        "error": Figure("squared error", "", "min"),
        "used": Figure("share of the nearest", "", "none"),
    }
    criterion = "error"
    quantity = "neither"
    meaning = "squared errors: not likelihoods"

    def __init__(self, data: DataSpec, codes: int = 4) -> None:
        super().__init__(data, arguments(locals(), "data"))
        self.codes, self.code_shape = codes, (1,)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("means", torch.zeros(codes, *data.shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._sums: list[tuple[Tensor, Tensor]] = []

    def initialize(self, examples):
        first = next(iter(examples)).x[: self.codes]
        self.means.copy_(first.to(self.means))

    def nearest(self, x):
        return torch.cdist(x.flatten(1), self.means.flatten(1)).argmin(1)

    def _error(self, batch):
        code = self.nearest(batch.x)
        return (batch.x - self.scale * self.means[code]).square().flatten(1).sum(1), code

    def loss(self, batch, noise, step):
        error, code = self._error(batch)
        chosen = F.one_hot(code, self.codes).to(batch.x)
        self._sums.append((chosen.sum(0), (chosen.T @ batch.x.flatten(1)).detach()))
        return error, {"error": error.detach()}

    def after_step(self, noise):
        counts, sums = (torch.stack(each).sum(0) for each in zip(*self._sums, strict=True))
        self._sums = []
        mean = sums / counts.clamp(min=1)[:, None]
        unused = 0.01 * noise.uniform(self.codes)[0, 0] * (counts == 0)
        moved = torch.where((counts > 0)[:, None], mean, self.means.flatten(1))
        with torch.no_grad():
            self.means.lerp_((moved + unused[:, None]).view_as(self.means), 0.1)
        self.updates += 1

    def measure(self, batch, noise):
        error, code = self._error(batch)
        return {"error": error, "used": (code == 0).to(error)}

    def sample(self, n, noise, y=None, temperature=1.0):
        return self.decode_codes(noise.integers(self.codes)[:, None].to(self.means.device))

    def embed(self, batch):
        return batch.x.flatten(1)[:, None]

    def scores(self, embedded):
        return -torch.cdist(embedded, self.means.flatten(1)).square()

    def decode_codes(self, code):
        return (self.scale * self.means[code[:, 0]]).clamp(0, 1)

    def log_likelihood_of(self, batch, code):
        return -(batch.x - self.scale * self.means[code[..., 0]]).square().flatten(2).sum(2)


class Colours(DataModule):
    """Flat square pictures, each of one of two colours with some noise."""

    def __init__(
        self, batch_size: int = 16, val_size: int = 20, size: int = 8, seed: int = 1
    ) -> None:
        spec = DataSpec((3, size, size), "unit", class_names=("warm", "cold"))
        settings = arguments(locals(), "spec")
        super().__init__(
            name="colours", spec=spec, sizes=(100, 40), settings=settings, seed=seed,
            batch_size=batch_size, val_size=val_size,
        )  # fmt: skip

    def read(self, file):
        count = {"train": 100, "test": 40}[file]
        generator = keyed_generator(7, count)
        y = torch.arange(count) % 2
        base = torch.tensor([[200, 80, 20], [20, 80, 200]])[y][:, :, None, None]
        x = base + torch.randint(-20, 20, (count, *self.spec.shape), generator=generator)
        return x.to(torch.uint8), y


# -- a model of sequences -------------------------------------------------------------------------


class Letters:
    """Sequences of tokens: drawn as rows of grey cells, written as text."""

    noun = "sequence"

    def picture(self, x, columns):
        cells = (x.float() / 5).clamp(0, 1).repeat_interleave(4, -1)
        return cells[None].repeat_interleave(4, -2).expand(3, -1, -1)

    @property
    def formats(self):
        return {"txt": lambda x: ("".join("abcde"[token] for token in x.tolist()) + "\n").encode()}

    def read(self, folder, shape):
        files = sorted(Path(folder).glob("*.txt"))
        if not files:
            raise ValueError(f"{folder} holds no .txt files")
        texts = [file.read_text().strip() for file in files]
        rows = [["abcde".index(letter) for letter in text] for text in texts]
        return torch.tensor(rows), [file.name for file in files]


class Bigrams(Model):
    """p(x) of a sequence by pairs of neighbours: a likelihood, and no code."""

    figures: ClassVar = {"log_likelihood": Figure("log-likelihood")}
    terms: ClassVar = ("log_likelihood",)
    criterion = "log_likelihood"
    quantity = "mass"
    meaning = "log-likelihoods of sequences"

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data, arguments(locals(), "data"))
        if data.values != "tokens":
            raise ValueError(f"vocabulary={data.vocabulary}: needs tokens")
        self.table = nn.Parameter(torch.zeros(data.vocabulary + 1, data.vocabulary))

    def _log_likelihood(self, batch):
        before = F.pad(batch.x + 1, (1, -1))  # row 0 is the beginning
        log_prob = self.table.log_softmax(-1)[before]
        return log_prob.gather(-1, batch.x[..., None]).squeeze(-1).sum(-1)

    def loss(self, batch, noise, step):
        log_likelihood = self._log_likelihood(batch)
        return -log_likelihood, {"log_likelihood": log_likelihood.detach()}

    def measure(self, batch, noise):
        return {"log_likelihood": self._log_likelihood(batch)}

    def sample(self, n, noise, y=None, temperature=1.0):
        tokens, last = [], torch.zeros(n, dtype=torch.int64)
        for _ in range(self.data.shape[0]):
            cumulative = self.table[last].div(max(temperature, 1e-6)).softmax(-1).cumsum(-1)
            drawn = (noise.uniform()[0][:, None] > cumulative).sum(-1)
            tokens.append(drawn.clamp(max=self.data.vocabulary - 1))
            last = tokens[-1] + 1
        return torch.stack(tokens, dim=1)


class Words(DataModule):
    """Sequences of eight letters in which a letter follows itself or the next one; no labels."""

    modality = Letters()

    def __init__(self, batch_size: int = 16, val_size: int = 20, seed: int = 1) -> None:
        settings = arguments(locals())
        super().__init__(
            name="words", spec=DataSpec((8,), "tokens", vocabulary=5), sizes=(100, 40),
            settings=settings, seed=seed, batch_size=batch_size, val_size=val_size,
        )  # fmt: skip

    def read(self, file):
        count = {"train": 100, "test": 40}[file]
        steps = torch.randint(2, (count, 8), generator=keyed_generator(8, count))
        return steps.cumsum(1) % 5, None


def batch_of(data: DataModule, split: str = "test") -> Batch:
    """Return the first batch of a split of data that is read here."""
    data.setup()
    return next(iter(data.split(split)))
