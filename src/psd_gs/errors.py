"""The error tree. Every message says what was expected, what was received and the remedy."""


class PsdGsError(Exception):
    """Base of all errors that the user can act on; the command line prints it without a traceback."""


class ConfigError(PsdGsError):
    """An option, preset or YAML key that does not exist or has a value out of range."""


class InputError(PsdGsError):
    """A prompt, image, point cloud or mesh that cannot be used."""


class FormatError(InputError):
    """A file that is not what its name says, is truncated, or holds non-finite data."""


class UnsupportedError(FormatError):
    """A sound file that uses something known that is not read here; the message names the thing and the way out."""


class ModelError(PsdGsError):
    """Weights that are missing, truncated or of another architecture."""


class BackendError(PsdGsError):
    """A device or rasterizer that was asked for and cannot run."""


class OutputError(PsdGsError):
    """A target that cannot be written, or that holds other work."""


class PluginError(PsdGsError):
    """An installed package that offers a prior, reward, preference or exporter, and is broken."""
