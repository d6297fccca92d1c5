"""What the benchmarks share: who can take part, CPU seconds in turns, peak memory of a fresh process, the machine."""

import ctypes
import gc
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def importable(names: Iterable[str], run: Callable[[str], object]) -> tuple[list[str], dict[str, str]]:
    """The contestants that ``run`` lets take a small step here, and why it does not the others."""
    found, missing = [], {}
    for name in names:
        try:
            run(name)
            found.append(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found, missing


def least_cpu_seconds(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each step over some rounds, after one that makes moments and buffers; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: min(values) for name, values in seconds.items()}


def in_fresh_processes(work: Callable, names: Iterable[str], *arguments) -> dict:
    """``work(name, *arguments)`` of each name, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(work, (name, *arguments)) for name in names}


def peak_memory(work: Callable[[], object]) -> dict[str, int]:
    """Peak resident bytes of this process during ``work``, and how far that lies above what it held before (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no room for the work
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    work()
    return {"process": _status("VmHWM"), "extra": _status("VmHWM") - before}


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def save(name: str, result: dict, *packages: str) -> None:
    """Write ``results/<name>.json``: the machine, the versions of Python and of some packages, and the result."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((x.split(": ")[1] for x in lines if x.startswith("model name")), platform.processor())
    found = {"machine": {"processor": processor, "system": platform.platform()}}
    found["versions"] = {"python": platform.python_version()} | {package: _version(package) for package in packages}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found | result, indent=1, default=float) + "\n")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
