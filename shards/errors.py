"""The errors that are the user's to mend, for every room. Our own mistakes are asserts and tracebacks.

A `UserError` is one line with the value, the place and the remedy; the command line prints it and exits with 2.
"""

from __future__ import annotations

import errno


class UserError(Exception):
    """Something the user can mend: one line with value, place and remedy."""


class ShardError(UserError):
    """A shard, manifest or prepared corpus that cannot be used as it is."""


_DISK = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again (whole shards are kept)",
    errno.EDQUOT: "the disk quota is used up; free some and run the same command again (whole shards are kept)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another folder or mend its permissions",
    errno.EPERM: "operation not permitted; choose another folder or mend its permissions",
}


def from_os_error(error: OSError) -> UserError | None:
    """The user's view of a full, read-only or forbidden disk; None for every other OSError."""
    remedy = _DISK.get(error.errno or 0)
    if remedy is None:
        return None
    place = error.filename if error.filename is not None else "writing output"
    return UserError(f"{place}: {remedy}")
