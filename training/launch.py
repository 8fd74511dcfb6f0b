"""How a run shares the machine: with other runs (one per folder), its launcher and the signals that end it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class FolderTaken(ValueError):
    """Another process trains into the folder. train_accelerate.py exits with status TAKEN then; a grid waits."""


TAKEN = 75  # EX_TEMPFAIL of sysexits.h


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder: both would sweep away each other's half-written checkpoints.

    Raises:
        FolderTaken: another process, on this machine or on the same network disk, trains into it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FolderTaken(
            f"Another process is training into {folder}. Wait for it, stop it (SIGTERM saves a checkpoint), or choose "
            "another --output-dir."
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def is_taken(folder: Path) -> bool:
    """Whether a process trains into the folder now."""
    try:
        with alone_in(folder) if folder.is_dir() else contextlib.nullcontext():
            return False
    except FolderTaken:
        return True
