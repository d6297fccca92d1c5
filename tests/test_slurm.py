"""The pipeline on a real scheduler: a SLURM of one node on this machine, which each run starts and stops.

``python -m pytest -m slow tests/test_slurm.py``; Debian has what it needs in slurmctld, slurmd, slurm-client and munge.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minwidth import ladders, scales, store, students
from minwidth.store import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
GIVEN = dict(widths=[16, 32], seeds=[0, 1], ladders=["random"], steps=40, evaluations=2, held_out_blocks=4)
CONFIGURATION = """
ClusterName=minwidth
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What keeps a SLURM of our own from running here."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found: install slurmctld, slurmd, slurm-client and munge"
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        return "the extra slurm of pyproject.toml is not installed"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root only"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of commands that talk to a running SLURM."""
    key = tmp_path / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    tmp_path.chmod(0o755)
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    host = socket.gethostname().split(".")[0]
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, user="root", folder=tmp_path, ports=free_ports(2)))
    files = {name: tmp_path / f"munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    commands = [
        ["munged", "--force", "--foreground", f"--key-file={key}", *(f"--{n}={file}" for n, file in files.items())],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration), "-N", host],
    ]
    environment = os.environ | {"SLURM_CONF": str(configuration), "MINWIDTH_RUNS": str(tmp_path / "cluster")}
    shim = tmp_path / "bin" / "srun"  # within a job Snakemake forgets SLURM_CONF, since clusters have it in /etc
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    shim.chmod(0o755)
    environment["PATH"] = f"{shim.parent}:{environment['PATH']}"
    daemons = []
    try:
        for command in commands:
            with (tmp_path / f"{command[0]}.log").open("w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            time.sleep(2)
        wait_for(lambda: b"idle" in output(["sinfo", "--noheader"], environment), "an idle node", 60)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def output(command: list[str], environment: dict[str, str]) -> bytes:
    return subprocess.run(command, env=environment, capture_output=True, check=False).stdout


def wait_for(condition, what: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {seconds} seconds"
        time.sleep(0.5)


def test_a_ladder_on_slurm_has_the_numbers_of_one_machine(slurm: dict[str, str], tmp_path: Path, monkeypatch):
    """Four students side by side; one job is cancelled while it trains and sent again, which ends in the same bits."""
    p = scales.parameters("04_distill", "tiny", **GIVEN)
    copies = tmp_path / "cluster" / "tiny"
    copies.mkdir(parents=True)
    (copies / "03_sae.ipynb").touch()  # what the students wait for; they do not read it
    targets = [str(copies / f"students/w{width}-s{seed}") for width in p.widths for seed in p.seeds]
    given = [f"{name}={value!r}" for name, value in GIVEN.items()]
    command = [sys.executable, "-m", "snakemake", *targets, "--config", "scale=tiny", *given]
    command += ["--workflow-profile", "workflow/profiles/slurm", "--rerun-triggers", "mtime", "--latency-wait", "5"]
    command += ["--slurm-no-account", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks"]
    command += ["5", "--default-resources", "slurm_partition=main", "--set-resources", "students:mem_mb=1500"]
    with (tmp_path / "snakemake.log").open("w") as log:
        pipeline = subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=log, stderr=log)

    running = ["squeue", "--noheader", "--states=RUNNING", "--format=%i"]
    wait_for(lambda: output(running, slurm).split(), "a running job", 120)
    victim = output(running, slurm).split()[0].decode()
    subprocess.run(["scancel", victim], env=slurm, check=True)
    assert pipeline.wait(timeout=3600) == 0, (tmp_path / "snakemake.log").read_text()
    submitted = output(["squeue", "--noheader", "--states=all", "--format=%T"], slurm).decode().split()
    assert sorted(submitted) == ["CANCELLED", *["COMPLETED"] * 4]

    expected = tmp_path / "one machine"
    environment = slurm | {"MINWIDTH_RUNS": str(expected)}
    changes = [f"--set={name}={GIVEN[name]}" for name in ("steps", "evaluations", "held_out_blocks")]
    for job in ladders.jobs(p):
        student = ["--ladder", "random", "--width", str(job.width), "--seed", str(job.seed), *changes]
        subprocess.run([sys.executable, "-m", "minwidth.ladders", *student], env=environment, cwd=ROOT, check=True)
        found = []
        for folder in (tmp_path / "cluster", expected):
            monkeypatch.setattr(store, "RUNS", folder)
            found.append(store.find(*students.key(p, job)))
        assert found[0] and found[0]["history"].equals(found[1]["history"])
