"""Which errors are a user's to mend, and the one sentence each becomes."""

from __future__ import annotations

import errno

from ugt.schema import UGTError

# how torch, safetensors and SQLite say it, who raise no OSError
FULL = ("No space left on device", "database or disk is full", "PytorchStreamWriter failed writing")
UNUSABLE = (errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def plain(error: BaseException) -> str | None:
    """The message for an error that needs no stack trace, or None for a fault of ours. Ray's wrappers are looked through."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        message = _plain_one(current)
        if message is not None:
            return message
        current = getattr(current, "cause", None) or current.__cause__ or current.__context__
    return None


def _plain_one(error: BaseException) -> str | None:
    if isinstance(error, UGTError) and not hasattr(error, "traceback_str"):  # a RayTaskError is both; its cause is the plain one
        return str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (not hasattr(error, "traceback_str") and any(text in str(error) for text in FULL)):
        where = getattr(error, "filename", None) or "while writing"
        return f"the disk is full ({where}). Free some space or set UGT_HOME to another disk, then run it again: finished steps are kept."
    if isinstance(error, PermissionError) and error.filename:
        return f"no permission for {error.filename}. Change its rights; if it is a place to write to, choose another (UGT_HOME, or the flag that names it)."
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
        return f"cannot use {error.filename}: {error.strerror}. Choose another place (UGT_HOME, or the flag that names it)."
    if type(error).__module__ == "redis.exceptions":
        return f"Redis failed: {error} Start it or correct stores.redis_url; if it says that it cannot write, free some space on its disk."
    if type(error).__module__ == "sqlalchemy.exc" and type(error).__name__ in ("OperationalError", "DatabaseError"):
        return f"the SQL database failed: {getattr(error, 'orig', error)}. End the other program that holds it, or correct stores.sql_url, then run it again."
    if type(error).__name__ == "OutOfMemoryError":
        return "memory ran out. Lower training.batch_size or etl.blocks, or close other programs, then run it again: finished steps are kept."
    return None
