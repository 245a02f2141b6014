"""The one family of errors that this package raises on purpose.

Each message is one line that names the flag, edge, layer or shape at fault and says what would be
right. The command line prints that line and exits with a code other than 0.
"""

from __future__ import annotations


class PahqError(Exception):
    """Base of every error raised on purpose."""


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


def one_line(reason: object) -> str:
    """Another library's message, without line breaks and not too long."""
    return " ".join(str(reason).split())[:LONGEST_REASON]
