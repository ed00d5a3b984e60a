"""The exceptions a caller may want to catch. Each message names what was wrong, where, and what to do about it."""


class ArbError(Exception):
    """Base of every error this package raises on purpose."""


class FormatError(ArbError, ValueError):
    """A packed tensor or an `.arb` file breaks the rules of docs/format.md."""


class InputError(ArbError, ValueError):
    """An argument has the wrong shape, dtype or content (NaN, Inf, an empty matrix, an unknown method)."""


class CalibrationError(ArbError, ValueError):
    """The calibration source is missing, too short, or of an unknown kind."""


class UnsupportedModelError(ArbError, ValueError):
    """No stack of decoder layers holding nn.Linear was found, or the checkpoint cannot be streamed."""
