"""What other projects call their settings, and what to type here."""

from collections.abc import Set

INSTEAD = {
    "trainer.max_epochs": "epochs epoch num_epochs n_epochs nepochs max_epoch max_epochs",
    "epochs": "num_epochs n_epochs nepochs max_epoch max_epochs",  # of train_classifier
    "trainer.max_steps": "steps num_steps max_steps iterations num_iterations max_iters",
    "optimizer.learning_rate": "lr learning_rate base_lr step_size",
    "optimizer.weight_decay": "wd weight_decay l2",
    "optimizer": "optim optimizer optimiser solver",
    "optimizer.options": "betas momentum eps nesterov amsgrad",
    "optimizer.schedule": "scheduler schedule lr_scheduler lr_schedule",
    "data": "dataset dataset_name data_name",
    "data.dir": "data_dir datadir data_path data_root dataroot root dataset_path",
    "data.batch_size": "batch_size bs batch batchsize train_batch_size",
    "data.eval_batch_size": "batch_size bs batch batchsize test_batch_size val_batch_size",
    "data.val_size": "val_split validation_split",
    "model.latent_dim": "latent_dim latent_dims latent_size latents num_latents n_latents "
    "z_dim z_size zdim dim_z nz code_size embedding_dim",
    "model.hidden_dims": "hidden_dims hidden_dim hidden_size hidden_sizes hidden h_dim layers",
    "model.kl_weight": "beta kl_beta kl_weight kld_weight kl_coef kl_coeff",
    "model.kl_schedule": "anneal kl_anneal kl_annealing beta_schedule warmup",
    "model.activation": "act nonlinearity",
    "model.network": "arch architecture",
    "model.likelihood": "loss recon_loss reconstruction_loss",
    "model.num_samples": "k iwae_samples n_samples num_samples",
    "count": "n num n_samples num_samples num_images n_images",  # of sample
    "samples": "k n_samples num_samples iwae_samples",  # of evaluate
    "columns": "nrow ncols cols",
    "label": "class digit y",
    "trainer.accelerator=cpu": "no_cuda no_gpu no_mps cpu",
    "trainer.accelerator=gpu": "cuda use_cuda gpu use_gpu",
    "trainer.accelerator=mps": "mps",
    "trainer.accelerator": "device accelerator",
    "trainer.devices": "devices gpus num_gpus n_gpu ngpu",
    "trainer.num_nodes": "nodes num_nodes",
    "trainer.precision": "precision amp fp16 bf16 half mixed_precision",
    "trainer.gradient_clip_val": "clip grad_clip clip_grad max_grad_norm gradient_clip",
    "trainer.accumulate_grad_batches": "accumulate grad_accum gradient_accumulation_steps",
    "trainer.log_every_n_steps": "log_interval log_every log_freq print_freq print_every",
    "trainer.fast_dev_run=true": "fast_dev_run dry_run debug smoke_test",
    "trainer.limit_train_batches": "limit_batches max_batches",
    "trainer.overfit_batches": "overfit_batches overfit",
    "trainer.profiler": "profiler profile",
    "trainer.detect_anomaly": "detect_anomaly anomaly",
    "callbacks.early_stopping.patience": "patience early_stopping",
    "callbacks.last.every_n_steps": "save_every save_freq save_interval checkpoint_every",
    "seed": "random_seed manual_seed rng_seed",
    "checkpoint": "ckpt ckpt_path checkpoint_path model_path load weights resume",
    "resume": "ckpt ckpt_path checkpoint checkpoint_path load resume_from resume_from_checkpoint",
    "sweep": "checkpoint run runs path directory",  # of summarize
    "hydra.run.dir": "out out_dir outdir output output_dir save_path save_dir save log_dir logdir "
    "results_dir run_name exp_name experiment_name",
    "logger=wandb": "wandb use_wandb",
    "logger=mlflow": "mlflow use_mlflow",
    "trials": "n_trials num_trials",
    "experiment": "config recipe preset",
}
"""What to type, a key or a whole override, and the names that stand for it elsewhere.

Of several that share a name, the first counts whose key the command has.
"""

ABSENT = {
    "the images lie in memory, and no workers load them": "num_workers n_workers workers "
    "nworkers pin_memory persistent_workers",
    "only model=musicvae has it, as model.dropout": "dropout dropout_rate p_dropout",
    "no model here normalises batches": "batch_norm batchnorm bn",
}
"""Why there is no such setting here, and the names that it has elsewhere."""


def instead_of(name: str, known: Set[str]) -> str | None:
    """Return what to type here for another project's name of a setting.

    Args:
        name: the name, with ``-`` or ``_``, in any case.
        known: the keys of the command.

    Returns:
        A key, or an override with its value; None: the name isn't in the table.
    """
    plain = name.lower().replace("-", "_")
    return next(
        (
            each
            for each, names in INSTEAD.items()
            if plain in names.split() and each.partition("=")[0] in {*known, "hydra.run.dir"}
        ),
        None,
    )


def why_absent(name: str) -> str | None:
    """Return why there is no setting of a name that is common elsewhere; None: it isn't."""
    plain = name.lower().replace("-", "_")
    return next((why for why, names in ABSENT.items() if plain in names.split()), None)
