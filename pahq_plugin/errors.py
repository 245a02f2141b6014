"""The one family of errors that this package raises on purpose.

Each message is one line that names the flag, edge, layer or shape at fault and says what would be
right. The command line prints that line and exits with a code other than 0.
"""

from __future__ import annotations

LONGEST_MESSAGE, LONGEST_END = 1500, 300
"""Maximum characters of a message (less than a screen), and how many of its end survive a cut."""


def printable(text: str) -> str:
    """Escape every character that cannot be printed: line breaks, controls, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PahqError(Exception):
    """Base of every error raised on purpose; its message is one short line, whatever names it quotes."""

    def __init__(self, message: str = "") -> None:
        line = printable(message)
        if len(line) > LONGEST_MESSAGE:
            line = f"{line[: LONGEST_MESSAGE - LONGEST_END]} ... {line[-LONGEST_END:]}"
        super().__init__(line)


class PahqWarning(UserWarning):
    """The run goes on, but not as requested: for example on another engine or device.

    ``warnings.filterwarnings("ignore", category=pahq_plugin.PahqWarning)`` silences all of them;
    ``"error"`` instead of ``"ignore"`` turns them into errors.
    """


class ConfigError(PahqError):
    """A setting is out of range, contradicts another, or is unknown."""


class FormatError(PahqError):
    """A number format cannot represent what it was given."""


class ModelError(PahqError):
    """The model lacks something that patching needs, or holds NaN or infinity."""


class GraphError(PahqError):
    """A node, head or edge is not part of the model's computation graph."""


class PromptError(PahqError):
    """Prompts cannot be used: empty, of unequal length, or with unknown words."""


class ProblemError(PahqError):
    """A problem or model name is unknown, or cannot be loaded."""


class MetricError(PahqError):
    """A metric is unknown, does not fit the output, or returned NaN or infinity."""


class ResultError(PahqError):
    """A result file is missing, damaged, or belongs to another model."""


class CheckpointError(PahqError):
    """A checkpoint is truncated, modified, from another run, or in use."""


class DistributedError(PahqError):
    """The processes of a run cannot work together, or one of them has died."""


class ExportError(PahqError):
    """An export cannot be written or read: a missing extra, a foreign or damaged file, or a part of the
    model that ONNX cannot express."""


LONGEST_REASON = 300
"""Maximum characters quoted from another library's message."""


def counted(number: int, one: str, several: str = "") -> str:
    """Format a count with its noun: ``"1 thread"``, ``"2 threads"``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def one_line(reason: object) -> str:
    """Put another library's message on one line of at most `LONGEST_REASON` characters."""
    return printable(" ".join(str(reason).split()))[:LONGEST_REASON]
