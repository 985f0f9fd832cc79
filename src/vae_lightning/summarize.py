"""Compare many runs.

``python -m vae_lightning.summarize <sweep's directory> ... [key=value ...]``
"""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_lightning.cli.command import command
from vae_lightning.configuration.paths import expanded
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files
from vae_lightning.runs.directory import new_run_directory
from vae_lightning.sweeps import summaries, tables

log = logging.getLogger(__name__)


@command(
    "summarize",
    positional="sweep",
    several=True,
    no_sweep="summarize runs once, over all that is named",
)
def main(config: DictConfig) -> None:
    """Average the test figures over seeds, and write them as tables and charts."""
    named = [
        str(each) for each in (config.sweep if OmegaConf.is_list(config.sweep) else [config.sweep])
    ]
    if "" in named:
        raise ConfigurationError("sweep='': empty; name a sweep's directory or a folder of runs")
    jobs = summaries.find_jobs([Path(expanded(each)) for each in named])
    left_out = tables.not_counted(jobs)
    if len(left_out) == len(jobs):
        log.info(tables.listing(left_out, len(jobs)))
        raise ConfigurationError(
            f"sweep={','.join(named)}: none of its {len(jobs)} jobs counts, as listed above"
        )
    sort = summaries.criterion_of(jobs) if config.sort is None else str(config.sort)
    combinations = summaries.combine(jobs, sort)
    remarks = tables.remarks(combinations)
    from vae_lightning.sweeps import (
        charts,
    )  # here, so that a mistake is answered without waiting for matplotlib

    curves, without = summaries.mean_curves(combinations, charts.MOST)
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        missing = summaries.monitored(combinations)
        remarks.append(
            f"no learning curve, since no log that can be read holds {missing}: "
            f"{without[0].name}{more}"
        )
    figures = {
        "elbo_against_latent_dim": charts.figure_against_latent_dim(combinations),
        "rate_distortion": charts.rate_distortion(combinations),
        "learning_curves": charts.learning_curves(curves, len(combinations)) if curves else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    texts = {
        "summary.csv": tables.combinations_csv(combinations),
        "jobs.csv": tables.jobs_csv(jobs),
        "summary.md": tables.markdown(combinations, sort, remarks, left_out, list(drawn)),
    }
    with new_run_directory("summarize", config) as writing:
        for name, text in texts.items():
            atomic_files.write(writing / name, text.encode())
        for name, figure in drawn.items():
            for form in ("png", "pdf"):
                figure.savefig(writing / f"{name}.{form}", dpi=200)
    shown = [tables.table(combinations, sort), "\n".join(f"  {remark}" for remark in remarks)]
    if left_out:
        shown.append(tables.listing(left_out, len(jobs)))
    shown.append(f"{', '.join([*texts, *(f'{name}.png' for name in drawn)])} in {writing.parent}")
    log.info("\n%s", "\n\n".join(shown))


if __name__ == "__main__":
    main()
