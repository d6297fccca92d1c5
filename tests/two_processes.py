"""What test_training lets two processes do: ``torchrun --nproc_per_node 2 -m tests.two_processes launched folder``.

With ``notebook`` instead it is one program that launches them itself, as a notebook does; with ``dying`` one of the two
is killed in the middle.
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
    return small_world.parameters(folder / "teacher")


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, folder = sys.argv[1], Path(sys.argv[2])
    with errors.in_one_sentence():
        if how == "launched":
            autoencoders(folder)
            student(folder)
        else:
            training.launch(2, {"notebook": student, "dying": dying}[how], folder)
