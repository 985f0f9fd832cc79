"""Compare many runs: ``python -m vae_lightning.summarize <sweep's directory> ... [key=value ...]``."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_lightning import durable, summaries, tables
from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("summarize", positional="sweep", no_sweep="summarize runs once, over all that is named")
def main(config: DictConfig) -> None:
    """Average the test figures over seeds, and write them as tables and charts."""
    named = [str(each) for each in (config.sweep if OmegaConf.is_list(config.sweep) else [config.sweep])]
    jobs = summaries.find_jobs([Path(each).expanduser() for each in named])
    left_out = tables.not_counted(jobs)
    if len(left_out) == len(jobs):
        log.info(tables.listing(left_out, len(jobs)))
        raise ConfigurationError(f"sweep={','.join(named)}: none of its {len(jobs)} jobs is finished")
    combinations = summaries.combine(jobs, str(config.sort))
    remarks = tables.remarks(combinations)
    from vae_lightning import charts  # here, so that a mistake is answered without waiting for matplotlib

    curves, without = summaries.mean_curves(combinations, charts.MOST)
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        remarks.append(f"without a learning curve, for their logs hold no val/elbo: {without[0].name}{more}")
    figures = {
        "elbo_against_latent_dim": charts.elbo_against_latent_dim(combinations),
        "rate_distortion": charts.rate_distortion(combinations),
        "learning_curves": charts.learning_curves(curves, len(combinations)) if curves else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    directory = make_run_directory("summarize")
    save_configuration(config, directory)
    texts = {
        "summary.csv": tables.combinations_csv(combinations),
        "jobs.csv": tables.jobs_csv(jobs),
        "summary.md": tables.markdown(combinations, str(config.sort), remarks, left_out, list(drawn)),
    }
    for name, text in texts.items():
        durable.write(directory / name, text.encode())
    for name, figure in drawn.items():
        for form in ("png", "pdf"):
            figure.savefig(directory / f"{name}.{form}", dpi=200)
    shown = [tables.table(combinations, str(config.sort)), "\n".join(f"  {remark}" for remark in remarks)]
    if left_out:
        shown.append(tables.listing(left_out, len(jobs)))
    shown.append(f"{', '.join([*texts, *(f'{name}.png' for name in drawn)])} in {directory}")
    log.info("\n%s", "\n\n".join(shown))


if __name__ == "__main__":
    main()
