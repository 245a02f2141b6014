"""The one family of errors that this package raises on purpose.

Each message is one line that names the flag, edge, layer or shape at fault and says what would be
right. The command line prints that line and exits with a code other than 0.
"""

from __future__ import annotations

LONGEST_MESSAGE, LONGEST_END = 1500, 300
"""Characters of a message, less than a screen; and of its end, which is kept where it is cut."""


def printable(text: str) -> str:
    """The text with escapes for what is no visible character: line breaks, controls, half surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PahqError(Exception):
    """Base of every error raised on purpose; whatever names it holds, its message is one short line."""

    def __init__(self, message: str = "") -> None:
        line = printable(message)
        if len(line) > LONGEST_MESSAGE:
            line = f"{line[: LONGEST_MESSAGE - LONGEST_END]} ... {line[-LONGEST_END:]}"
        super().__init__(line)


class PahqWarning(UserWarning):
    """Something runs, but not as it was asked for: on another engine or another device.

    ``warnings.filterwarnings("ignore", category=pahq_plugin.PahqWarning)`` silences all of them,
    ``"error"`` in place of ``"ignore"`` makes them errors.
    """


class ConfigError(PahqError):
    """A setting is out of range, contradicts another one, or is unknown."""


class FormatError(PahqError):
    """A number format cannot represent what it was given."""


class ModelError(PahqError):
    """The model lacks something that patching needs, or holds values that are not finite."""


class GraphError(PahqError):
    """A node, head or edge is not part of the model's computation graph."""


class PromptError(PahqError):
    """Prompts cannot be used: empty, of unequal length, or with unknown words."""


class ProblemError(PahqError):
    """A problem or a model's name is unknown or cannot be loaded."""


class MetricError(PahqError):
    """A metric is unknown, does not fit the output, or returned a value that is not finite."""


class ResultError(PahqError):
    """A result file is missing, damaged, or belongs to another model."""


class CheckpointError(PahqError):
    """A checkpoint is torn, tampered with, of another run, or in use."""


class DistributedError(PahqError):
    """Processes of one run cannot work together, or one of them is gone."""


class ExportError(PahqError):
    """An export cannot be written or read: a missing extra, a foreign or damaged file, a part of the
    model that no graph can hold."""


LONGEST_REASON = 300
"""Characters of another library's message that are passed on."""


def counted(number: int, one: str, several: str = "") -> str:
    """``"1 thread"``, ``"2 threads"``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def one_line(reason: object) -> str:
    """Another library's message, without line breaks and not too long."""
    return printable(" ".join(str(reason).split()))[:LONGEST_REASON]
