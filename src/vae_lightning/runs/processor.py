"""How the processor computes: denormal numbers count as zero.

After an epoch or two one in eight of Adam's first moments is denormal, so close to zero that many
processors take a hundred times as long over it. Nothing that is measured here depends on them.
"""

import logging

import torch

log = logging.getLogger(__name__)

_GRAIN = 32_768  # torch gives each thread that many numbers at least


def flush_denormals() -> None:
    """Let denormal numbers count as zero in this thread, and in those that torch starts from now.

    Call it before the first operation on large tensors, which starts torch's threads. Where they
    run already, as in a notebook, a warning says that they aren't reached.
    """
    torch.set_flush_denormal(True)
    if denormals() == "flushed on some threads":
        log.warning(
            "Denormal numbers slow down all threads of torch but this one: they were started "
            "before; call torch.set_flush_denormal(True) first thing after importing torch"
        )


def denormals() -> str:
    """Return how torch's threads take denormal numbers: ``flushed``, ``kept``, or in part."""
    tiny = torch.full((2 * _GRAIN * torch.get_num_threads(),), 1e-310, dtype=torch.float64)
    kept = (tiny * 1.0).count_nonzero().item()
    if kept in (0, len(tiny)):
        return "kept" if kept else "flushed"
    return "flushed on some threads"
