"""Redraw Figure 2 of "Auto-Encoding Variational Bayes".

python benchmarks/figure2.py PICTURE RUN_DIRECTORY...

Each run is one of ``experiment=aevb``. Solid: the bound on the test images; dashed: on the training
images; crosses: the paper's test curve, digitised at 10⁶ and 10⁷ training samples.
"""

import sys
from pathlib import Path

import matplotlib
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("agg")
from matplotlib import pyplot

PAPER = {
    3: (None, -138.0),
    5: (-138.9, -124.1),
    10: (-128.3, -108.5),
    20: (-124.2, -104.8),
    200: (-119.9, -103.9),
}


def main() -> None:
    """Read the runs' scalars and draw one panel for each size of the code."""
    picture, runs = sys.argv[1], {}
    for directory in map(Path, sys.argv[2:]):
        config = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())
        runs[config["model"]["latent_dim"]] = (directory, config["data"]["batch_size"])
    figure, panels = pyplot.subplots(
        1, len(runs), figsize=(2.6 * len(runs), 3), sharey=True, squeeze=False
    )
    for panel, latent_dim in zip(panels[0], sorted(runs), strict=True):
        directory, batch_size = runs[latent_dim]
        events = EventAccumulator(str(directory / "tensorboard")).Reload()
        for tag, style, label in (("val/elbo", "-", "test"), ("train/elbo_epoch", "--", "train")):
            scalars = events.Scalars(tag)
            panel.plot(
                [batch_size * each.step for each in scalars],
                [each.value for each in scalars],
                style,
                label=label,
            )
        for samples, value in zip((1e6, 1e7), PAPER.get(latent_dim, (None, None)), strict=True):
            if value is not None:
                panel.plot(samples, value, "kx", label="paper, test" if samples == 1e7 else None)
        panel.set(
            xscale="log", title=f"{latent_dim} latents", xlabel="training samples", ylim=(-150, -95)
        )
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("bound, nats per image")
    panels[0][-1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
