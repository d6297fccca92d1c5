"""What can go wrong and be mended by whoever runs the study: told in one sentence, without a traceback."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Fault(Exception):
    """Its text names the value, what is allowed and what to do."""

    def _render_traceback_(self) -> list[str]:  # all that IPython prints
        return [f"{type(self).__name__}: {self}"]


class ParameterError(Fault, ValueError):
    """A parameter that is unknown, ill-typed or impossible."""


class StorageError(Fault, OSError):
    """A file that cannot be written: a full disk, a folder that is read-only."""


class Diverged(Fault, FloatingPointError):
    """A training whose loss is no longer finite, or worse than a guess."""


class SourceError(Fault, RuntimeError):
    """A file that cannot be had, or is not the one that was locked or recorded."""


class LostError(Fault, LookupError):
    """A result that was computed and is no longer there whole."""


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """End a command that meets a ``Fault`` with its sentence."""
    try:
        yield
    except Fault as fault:
        raise SystemExit(f"{fault}") from None


def command(main: Callable[[], None]) -> None:
    """Run what a module does on the command line, its log in plain lines, a ``Fault`` as a sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with in_one_sentence():
        main()
