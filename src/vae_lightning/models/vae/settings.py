"""What a VAE can be set to, and which settings don't go together."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vae_lightning.configuration.building import OwnClass
from vae_lightning.models.base import DataSpec
from vae_lightning.models.likelihoods import LikelihoodName as OurLikelihood
from vae_lightning.models.likelihoods import build_likelihood
from vae_lightning.models.vae.networks import Activation, PosteriorScale
from vae_lightning.models.vae.networks import NetworkName as OurNetwork
from vae_lightning.models.vae.objectives import KLSchedule

__all__ = [
    "Activation",
    "KLSchedule",
    "LikelihoodName",
    "NetworkName",
    "NonNegative",
    "Objective",
    "PixelScale",
    "Positive",
    "PosteriorScale",
    "refuse_pairs",
]

LikelihoodName = OurLikelihood | OwnClass
NetworkName = OurNetwork | OwnClass
Objective = Literal["sgvb_b", "sgvb_a", "iwae"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PixelScale = Positive | Literal["learnt", "per_pixel"]


def refuse_pairs(data: DataSpec, settings: Mapping[str, Any]) -> None:
    """Check settings that are right by themselves.

    Raises:
        ValueError: two of them, or one of them and the data, don't go together.
    """
    objective, free_bits = settings["objective"], settings["free_bits"]
    schedule, classes = settings["kl_schedule"], settings["num_classes"]
    weighted = settings["kl_weight"] != 1 or schedule != "constant"
    if objective == "iwae" and (weighted or free_bits):
        raise ValueError(
            "objective=iwae: its bound has no KL term of its own, so kl_weight=1, no kl_schedule "
            "and no free_bits"
        )
    if objective == "sgvb_a" and free_bits:
        raise ValueError(f"free_bits={free_bits}: needs the KL in closed form, objective=sgvb_b")
    if schedule != "constant" and not settings["kl_schedule_steps"]:
        raise ValueError(
            f"kl_schedule={schedule}: needs kl_schedule_steps, the optimiser steps that it takes"
        )
    family = build_likelihood(settings["likelihood"], settings["pixel_scale"])
    if settings["initial_mean"] and (
        settings["network"] != "mlp" or family.parameters_per_pixel > 1
    ):
        raise ValueError("initial_mean=true: needs network=mlp and no pixel_scale=per_pixel")
    if len(data.shape) != 3:
        raise ValueError(
            f"network={settings['network']}: needs images [C, H, W], and the data has shape "
            f"{list(data.shape)}" + "; music needs model=musicvae" * data.is_of_tokens
        )
    if classes not in (0, len(data.class_names)):
        labels = f"{len(data.class_names)} labels" if data.class_names else "no labels"
        raise ValueError(f"num_classes={classes}: the data has {labels}")
