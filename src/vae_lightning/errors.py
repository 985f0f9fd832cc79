"""The errors that a command answers with a line or two."""


class ConfigurationError(ValueError):
    """A mistake in what the user typed."""


class DatasetUnavailable(OSError):
    """The files of a data set are not there and could not be fetched."""
