"""How a logged line looks. This module doesn't import torch."""

import logging

from vae_lightning.configuration.quoting import printable_lines


class Lines(logging.Formatter):
    """Leaves out control characters, whatever is logged: a terminal would obey them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable_lines(super().format(record))
