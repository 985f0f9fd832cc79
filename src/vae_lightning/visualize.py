"""Draw what a model has learnt: ``python -m vae_lightning.visualize checkpoint=<file or run>``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import new_run_directory

log = logging.getLogger(__name__)


@command("visualize", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Encode a split and draw it, each drawing as PNG and in the other formats that are named."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import math
    from typing import Any, Literal

    from pydantic import NonNegativeInt, PositiveInt
    from torch import Tensor

    from vae_lightning.configuration.building import require, require_list, require_memory
    from vae_lightning.data.datamodule import Split
    from vae_lightning.models.base import LatentModel
    from vae_lightning.runs.trained import check_label, choose_split, open_checkpoint
    from vae_lightning.visualization import drawings, plots

    asked = None
    if config.what is not None:
        asked = require_list("what", config.what, drawings.Drawing)
    formats = require_list("formats", config.formats, Literal["png", "pdf", "svg", "mid", "wav"])
    split = require("split", config.split, Split)
    label = require("label", config.label, NonNegativeInt | None)
    side = require("side", config.side, PositiveInt)
    trained = open_checkpoint(config)
    model, heard = trained.model, [form for form in formats if form in ("mid", "wav")]
    if heard and heard[0] not in trained.modality.formats:
        raise ConfigurationError(f"formats=[{heard[0]}]: not of {trained.modality.noun}s")
    what = drawings.drawings_of(model) if asked is None else asked
    reasons = {name: drawings.missing(name, model) for name in what}
    if all(reasons.values()):
        name, reason = next(iter(reasons.items()))
        raise ConfigurationError(f"what=[{name}]: {reason}")
    check_label(label, model.num_classes, needed_for="which label to decode")
    if not reasons.get("manifold", "not asked for"):
        require_memory(f"side={side}", side**2 * math.prod(model.data.shape))
    data = trained.read_data(config.data)
    examples = choose_split(data, split)
    encoded = drawings.encode(model, examples) if isinstance(model, LatentModel) else None
    drawn = []
    with new_run_directory("visualize", config) as writing:
        for name in what:
            if reasons[name]:
                log.info("No %s: %s", name, reasons[name])
                continue
            found = drawings.draw(name, model, data, examples, encoded, label or 0, side)
            if found is None:
                of_kl = name == "kl"
                reason = "the KL of each latent isn't known" if of_kl else "there is one example"
                log.info("No %s: %s", name, reason)
                continue
            picture, *names = found[:-1]
            is_grid = isinstance(picture, Tensor)
            figure: Any = plots.figure_of(picture, *names) if is_grid else picture  # type: ignore[arg-type]
            if found.examples is not None:
                shown, count = found.examples, max(1, len(found.rows))
                for number, row in enumerate(shown.reshape(count, -1, *shown.shape[2:]), 1):
                    for form in heard:
                        content = trained.modality.formats[form](row)
                        (writing / f"{name}_{number}.{form}").write_bytes(content)
            for form in [form for form in formats if form not in heard]:
                figure.savefig(writing / f"{name}.{form}", dpi=200)
            drawn.append(name)
    log.info("%s in %s", ", ".join(drawn), writing.parent)


if __name__ == "__main__":
    main()
