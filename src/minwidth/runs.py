"""Run records: parameters -> key -> values, tables and arrays on disk, found again or computed once.

A record is a folder ``runs/<what>-<digest>`` with ``record.json`` (parameters, values, tables, provenance) and
``arrays.safetensors``; both are written beside it first and renamed, so a record is there whole or not at all.
"""

import hashlib
import json
import logging
import math
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays

from minwidth.paths import RESULTS, ROOT, RUNS, alone, replace_file, replace_folder
from minwidth.wheels import locked_digest

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """What was computed: ``record["name"]`` is a JSON value, a DataFrame or a NumPy array."""

    key: str
    parameters: dict[str, Any]
    values: dict[str, Any]
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def key_of(what: str, parameters: dict[str, Any]) -> str:
    """Readable key of a record, e.g. ``distill/tiny/w64-s0-1a2b3c4d``; the digits depend on every parameter.

    Raises:
        ValueError: ``what`` is not ``room/scale/label``, or a parameter is not JSON.
    """
    if not re.fullmatch(r"[a-z0-9_]+(/[A-Za-z0-9_.=-]+)+", what) or ".." in what:
        raise ValueError(f"A record is named room/scale/label in letters, digits and -_.=, not {what!r}.")
    try:
        canonical = json.dumps(parameters, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The parameters of {what} must be finite JSON values: {error}.") from None
    return f"{what}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def folder_of(what: str, parameters: dict[str, Any]) -> Path:
    """The record's folder; its neighbour ``<folder>.work`` is where a long computation keeps checkpoints."""
    return RUNS / key_of(what, parameters)


def work_folder(what: str, parameters: dict[str, Any]) -> Path:
    """Where a long computation of this record keeps checkpoints; removed once the record is written."""
    folder = folder_of(what, parameters)
    return folder.with_name(folder.name + ".work")


def find(what: str, parameters: dict[str, Any]) -> Record | None:
    """The record of these parameters if it is there and intact; a damaged one is named in the log and left out."""
    folder = folder_of(what, parameters)
    if not folder.exists():
        return None
    try:
        record = _read(folder)
        if (record.key, record.parameters) != (key_of(what, parameters), json.loads(json.dumps(parameters))):
            raise ValueError(f"it holds {record.key}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("The record %s is damaged (%s) and will be computed again.", key_of(what, parameters), error)
        return None


def find_or_compute(what: str, parameters: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Record:
    """Return the record of (what, parameters), computing and storing it first if it is missing or damaged.

    A second process that asks for the same record meanwhile waits for it.

    Args:
        what: ``room/scale/label``.
        parameters: everything the result depends on, JSON values only.
        compute: no arguments -> dict of JSON values, DataFrames and arrays.
    """
    if record := find(what, parameters):
        return record
    with alone(folder_of(what, parameters)):
        if record := find(what, parameters):
            return record
        started = time.monotonic()
        values = compute()
        return store(what, parameters, values, seconds=time.monotonic() - started)


def store(what: str, parameters: dict[str, Any], values: dict[str, Any], seconds: float) -> Record:
    """Write a record atomically and return it as a later reader will find it."""
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    tables = {name: _pack_frame(value) for name, value in values.items() if isinstance(value, pd.DataFrame)}
    plain = {name: value for name, value in values.items() if name not in arrays and name not in tables}
    packed = dump_arrays(arrays)
    content = {
        "key": key_of(what, parameters),
        "parameters": parameters,
        "values": plain,
        "tables": tables,
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
        "provenance": provenance(seconds),
    }
    folder = folder_of(what, parameters)
    with replace_folder(folder) as temporary:
        (temporary / "arrays.safetensors").write_bytes(packed)
        body = json.dumps(_jsonable(content), indent=1)
        (temporary / "record.json").write_text(json.dumps({"sha256": _digest(body)}) + "\n" + body + "\n")
    shutil.rmtree(work_folder(what, parameters), ignore_errors=True)
    return _read(folder)


def _read(folder: Path) -> Record:
    first, _, body = (folder / "record.json").read_text().partition("\n")
    if json.loads(first)["sha256"] != _digest(body.rstrip("\n")):
        raise ValueError("record.json does not match its checksum")
    content = json.loads(body)
    packed = (folder / "arrays.safetensors").read_bytes()
    if hashlib.sha256(packed).hexdigest() != content["arrays_sha256"]:
        raise ValueError("arrays.safetensors does not match its checksum")
    tables = {name: pd.DataFrame(**table) for name, table in content["tables"].items()}
    values = content["values"] | tables | load_arrays(packed)
    return Record(content["key"], content["parameters"], values, content["provenance"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pack_frame(frame: pd.DataFrame) -> dict[str, list]:
    packed = frame.to_dict(orient="split", index=False)
    return {"data": packed["data"], "columns": packed["columns"]}


def _jsonable(value: Any) -> Any:
    """NumPy scalars as Python's; NaN (a missing number of a table) as null."""
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def provenance(seconds: float) -> dict[str, Any]:
    """Where a result comes from: versions, commit, device, the corpus lock and how long it took."""
    names = ("minwidth", "torch", "transformers", "numpy", "numba", "scikit-learn")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in names},
        "commit": commit.stdout.strip() or "unknown",
        "machine": platform.machine(),
        "corpus": locked_digest(),
        "seconds": round(seconds, 1),
    }


# ------------------------------------------------------------------------------------------------- committed results


def save_results(scale: str, name: str, frame: pd.DataFrame, record: Record) -> pd.DataFrame:
    """Write a small measured table to ``data/results/<scale>/<name>.csv``, its provenance beside it; return it."""
    folder = RESULTS / scale
    origin = {"record": record.key, "parameters": record.parameters, "rows": len(frame)}
    origin["provenance"] = record.provenance
    replace_file(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g").encode())
    replace_file(folder / f"{name}.json", (json.dumps(origin, indent=1) + "\n").encode())
    return frame


def load_results(scale: str, name: str) -> pd.DataFrame | None:
    """The committed table ``data/results/<scale>/<name>.csv``, or None where it has not been measured."""
    path = RESULTS / scale / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else None


def origin(scale: str, name: str) -> Record:
    """The record that a committed table came from, without its values; for the metadata of figures drawn from it."""
    said = json.loads((RESULTS / scale / f"{name}.json").read_text())
    return Record(said["record"], said["parameters"], {}, said["provenance"])
