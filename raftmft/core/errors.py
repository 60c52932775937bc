"""The three kinds of trouble (style.md): a Rejection is a value that `apply` gives; a RaftmftError is operating trouble
and says whether a retry is safe; an AssertionError is our own bug and stops the node.
"""


class RaftmftError(Exception):
    """Operating trouble. The text is one line that says what was wrong and what to do."""

    retry_is_safe = False


class NotApplied(RaftmftError):
    """The command was certainly not applied and never will be: safe to propose again."""

    retry_is_safe = True


class NoQuorum(NotApplied):
    """Not applied because no majority answered in time. SFTP and API texts contain "no quorum"."""


class OutcomeUnknown(RaftmftError):
    """The command may or may not have been applied: retry only with the same id, else report "outcome unknown"."""


class ConfigError(RaftmftError):
    """A setting, file or argument that a person must mend."""


class CorruptFile(RaftmftError):
    """A file on disk fails its checks. The text names the file; nothing was changed."""


class ProgramTooOld(RaftmftError):
    """The state is at a feature level that this program does not know: it must stop. Another version must be run."""


class NodeUnreachable(RaftmftError):
    """The node's admin socket or URL did not answer."""

    retry_is_safe = True
