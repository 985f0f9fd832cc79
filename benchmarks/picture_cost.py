"""The share of a run's training time that pictures, dashboards and the progress bar take.

python benchmarks/picture_cost.py [key=value ...]     # trains by the real command, with overrides
The bar is drawn on a terminal only.
"""

import sys
import time
from collections import defaultdict
from typing import Any

from lightning import Trainer

from vae_lightning.train import main
from vae_lightning.training.callbacks.dashboard import Dashboard
from vae_lightning.training.callbacks.looking import Look
from vae_lightning.training.callbacks.progress import Progress

SECONDS: dict[str, float] = defaultdict(float)


def timed(kind: type, method: str) -> None:
    """Let a method add the time that it takes to that of its object's name."""
    original = getattr(kind, method)

    def measured(self: Any, *arguments: Any, **others: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(self, *arguments, **others)
        finally:
            often = (
                "at the end" if isinstance(self, Look) and not self.every_n_epochs else "as it goes"
            )
            name = getattr(self, "name", type(self).__name__)
            SECONDS["fit" if isinstance(self, Trainer) else f"{often}: {name}"] += (
                time.perf_counter() - started
            )

    setattr(kind, method, measured)


timed(Trainer, "fit")
timed(Look, "_look")
timed(Dashboard, "on_fit_start")
timed(Progress, "on_train_batch_end")
sys.argv[0] = "vae_lightning.train"
main()
fit = SECONDS.pop("fit")
print(f"\n{'seconds':>9} {'share':>7}   of {fit:.1f} s in training and validation")
for group in ("as it goes", "at the end"):
    rows = {name: seconds for name, seconds in sorted(SECONDS.items()) if name.startswith(group)}
    for name, seconds in (*rows.items(), (f"{group}, all", sum(rows.values()))):
        print(f"{seconds:9.3f} {seconds / fit:7.2%}   {name}")
