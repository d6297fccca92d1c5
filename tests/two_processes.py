"""What test_training lets two processes do: ``torchrun --nproc_per_node 2 -m tests.two_processes launched folder``.

With ``dying`` instead it is one program that launches them itself, as a notebook does: one of the two is killed in the
middle, and the same call again goes on.
"""

import math
import os
import signal
import sys
from pathlib import Path

import torch

from minwidth import errors, sae, scales, store, students, training
from tests import small_world, test_students

JOB = students.Job("random", 16, 0, 60)


def student(folder: Path) -> store.Record:
    """Train a student in the small world of test_students."""
    test_students.build_small_world(folder)
    return students.student(student_parameters(), JOB, test_students.make_teacher())


def student_parameters() -> scales.Distill:
    return test_students.settings(parts=2)


def autoencoders(folder: Path) -> store.Record:
    """Train autoencoders of the random teacher in ``folder``."""
    store.RUNS = small_world.stream.RUNS = folder / "runs"
    small_world.text.token_blocks = small_world.token_blocks
    return sae.measure(autoencoder_parameters(folder))


def autoencoder_parameters(folder: Path) -> scales.Sae:
    return small_world.parameters(folder / "teacher", lams=[1.0], doubling=False)


def dying(folder: Path) -> None:
    """The second process is killed at its thirtieth step; checkpoints are written at every one."""
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = -1.0, math.inf
    update, steps = training.update, []

    def counted(*arguments):
        steps.append(1)
        if len(steps) == 30 and not training.state().is_main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*arguments)

    training.update = counted
    student(folder)


def killed_and_continued(folder: Path) -> None:
    """Says what the first call says, and which step it had reached."""
    try:
        with errors.in_one_sentence():
            training.launch(2, dying, folder)
    except SystemExit as ended:
        sys.stderr.write(f"\n{ended}\n")
    (checkpoint,) = folder.glob("distill/tiny/*.work/checkpoint")
    sys.stdout.write(f"\nkilled behind step {training.load_state(checkpoint)[1]['step']}\n")
    training.launch(2, student, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, folder = sys.argv[1], Path(sys.argv[2])
    for work in {"launched": (autoencoders, student), "dying": (killed_and_continued,)}[how]:
        work(folder)
