"""One run on disk: its directory, checkpoints, logs, mirror, and how it is resumed."""
