"""The one exception that users cause."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; its message is one sentence that says how.

    The command line prints the message on stderr and exits with status 2, without a traceback.
    """
