"""The exceptions that users cause or can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; its message is one sentence that says how.

    The command line prints the message on stderr and exits with status 2, without a traceback.
    """


class StoreError(UserError):
    """A store that cannot be used now: what was asked of it may go well later, unchanged."""


class ArtifactError(UserError):
    """A file or folder of a run that is missing, incomplete, damaged or of another version.

    Says what is wrong with it. What to do depends on what wrote it, and is added by the command line.

    Attributes:
        problem: what is wrong, a sentence without its full stop.
        path: of the file or folder, its URI or its path in the run.
    """

    def __init__(self, problem: str, path: str) -> None:
        super().__init__(problem, path)  # both, so that the exception can be pickled
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{self.problem}."
