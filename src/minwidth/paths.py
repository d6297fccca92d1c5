"""Where things lie, from the repository root, and how a file or folder is written: whole or not at all, by one process.

A folder that is sealed holds the SHA-256 of its files, and ``save_json`` puts one before what it writes, so that damage
is seen when it is read.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from minwidth.errors import StorageError

log = logging.getLogger(__name__)

ROOT = Path(os.environ.get("MINWIDTH_ROOT") or Path(__file__).resolve().parents[2])
DATA = ROOT / "data"
CORPORA_LOCK = DATA / "corpora.txt"
WHEELS = DATA / "wheels"
RUNS = Path(os.environ.get("MINWIDTH_RUNS") or ROOT / "runs")
OUT = Path(os.environ.get("MINWIDTH_OUT") or ROOT)  # tests point it to a temporary folder
RESULTS = OUT / "data" / "results"
FIGURES = OUT / "figures"
SEAL = "sha256.json"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what a full disk or a read-only folder does to the block into a sentence.

    Raises:
        StorageError: there is no room for ``target``, or no right to write it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM | NO_RIGHT or isinstance(error, StorageError):
            raise
        remedy = "make room there" if error.errno in NO_ROOM else "make it writable"
        raise StorageError(
            f"{target} cannot be written ({os.strerror(error.errno)}): {remedy}, or name another folder with "
            "MINWIDTH_RUNS for what is computed and MINWIDTH_OUT for tables and figures; nothing was lost."
        ) from error


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that takes its place if the block ends well, else vanishes.

    Where several processes write the same folder, it ends as one of theirs, whole.
    """
    unique = uuid.uuid4().hex[:8]
    temporary, old = (target.with_name(f".{target.name}-{role}-{unique}") for role in ("new", "old"))
    with writing(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            while temporary.exists():
                shutil.rmtree(old, ignore_errors=True)
                with suppress(FileNotFoundError):
                    target.rename(old)
                try:
                    temporary.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was there first
                        raise
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, content: bytes) -> None:
    """Write ``content`` to ``target`` so that a reader sees the old file or the new one, never half of it."""
    temporary = target.with_name(f".{target.name}-new-{uuid.uuid4().hex[:8]}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def save_json(target: Path, content: Any) -> None:
    """Write JSON behind a first line with its SHA-256, whole or not at all."""
    body = json.dumps(content)
    replace_file(target, f"{json.dumps({'sha256': hashlib.sha256(body.encode()).hexdigest()})}\n{body}\n".encode())


def load_json(target: Path) -> Any:
    """What ``save_json`` wrote; None where there is nothing, or what is damaged, which is logged."""
    try:
        first, _, body = target.read_text().partition("\n")
        if json.loads(first)["sha256"] != hashlib.sha256(body.rstrip("\n").encode()).hexdigest():
            raise ValueError("it does not match its checksum")
        return json.loads(body)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); what it is about will be made again.", target, error)
        return None


def write_part(target: Path, start: int, content: bytes | np.ndarray) -> str:
    """Write ``content`` into a file from byte ``start`` on, whatever is there, down to the disk; its SHA-256."""
    with writing(target):
        target.touch()
        with target.open("r+b") as file:
            file.seek(start)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def sha256_part(target: Path, start: int, end: int) -> str | None:
    """SHA-256 of the bytes from ``start`` to ``end``; None where they cannot be read."""
    try:
        with target.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(end - start)).hexdigest()
    except OSError:
        return None


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """While the block lasts, no other process is in such a block for ``target``; one that comes later waits.

    A process that is killed lets the next one in.
    """
    file = target.with_name(f"{target.name}.lock")
    lock = FileLock(file)
    with writing(target):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("Another process is at work on %s; waiting for it.", target)
            lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: whoever waits sees that, and makes a new one
        lock.release()


def sealed(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder that ``write`` filled and whose files are as it left them; if there is none, ``write`` fills it.

    One process writes while others wait; damage is named in the log.
    """
    if _damage(folder):
        with alone(folder):
            if damage := _damage(folder):  # else another process has just written it
                if folder.exists():
                    log.warning("%s is damaged (%s) and will be made again.", folder, ", ".join(damage))
                with replace_folder(folder) as temporary:
                    write(temporary)
                    sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
                    (temporary / SEAL).write_text(json.dumps(sums, indent=1) + "\n")
    return folder


def _damage(folder: Path) -> list[str]:
    """Names of files that are not what was sealed."""
    try:
        sums = json.loads((folder / SEAL).read_text()).items()
    except (OSError, ValueError, AttributeError):
        return [SEAL]
    return [name for name, digest in sums if not (folder / name).is_file() or sha256(folder / name) != digest]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return folder if folder.exists() else existing(folder.parent)


def sha256(path: Path) -> str:
    """SHA-256 of a file, read once as long as its size and time stay what they are."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
