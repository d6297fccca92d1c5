"""How a notebook is run: papermill's executed copies, and the committed notebooks themselves.

papermill loads ``copies`` through the entry point ``papermill.io`` before it parses its command line. For a notebook of
this project the output path may then be left out (``papermill 04_distill.ipynb -p width 512`` writes
``runs/04_distill__width=512.ipynb``), a parameter that the notebook cannot take ends the command with one sentence
before anything is run or written, a copy is no pair of jupytext's, and a committed notebook is never overwritten. Other
notebooks, and papermill called from Python, are left as they are.

``python -m minwidth.notebooks notebooks/*.py`` synchronises pairs and executes them in place; with
``--without-solutions runs/student`` it writes copies for students instead.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

from minwidth.store import ROOT, RUNS, replace_file

NOTEBOOKS = ROOT / "notebooks"
SCHEME = "minwidth-copy:"

# papermill's options by how many values follow them; one for all others
NO_VALUE = {
    "-h", "--help", "--version", "--help-notebook", "--inject-input-path", "--inject-output-path", "--inject-paths",
    "--request-save-on-cell-execute", "--no-request-save-on-cell-execute", "--prepare-only", "--prepare-execute",
    "--progress-bar", "--no-progress-bar", "--log-output", "--no-log-output", "--report-mode", "--no-report-mode",
}  # fmt: skip
TWO_VALUES = {"-p", "--parameters", "-r", "--parameters_raw"}
PARAMETERS = TWO_VALUES | {"-f", "--parameters_file", "-y", "--parameters_yaml", "-b", "--parameters_base64"}


def with_output_path(arguments: list[str]) -> list[str]:
    """papermill's arguments with the output of a notebook of this project sent through ``Copies``.

    Raises:
        SystemExit: the output would overwrite a notebook of this project.
    """
    positions, label = _read(arguments)
    paths = [arguments[position] for position in positions]
    if len(paths) == 2 and _is_ours(paths[1]):
        raise SystemExit(f"{paths[1]} is a notebook of this project and would be overwritten; name another output.")
    if not 1 <= len(paths) <= 2 or not _is_ours(paths[0]) or (len(paths) == 2 and not _is_local(paths[1])):
        return arguments
    if len(paths) == 2:
        output = paths[1]
    else:
        output = str(RUNS / ("__".join([Path(paths[0]).stem, *label]) + ".ipynb"))
        output = output.replace("{", "{{").replace("}", "}}")  # papermill fills braces from the parameters
    rest = [argument for index, argument in enumerate(arguments) if index not in positions[1:]]
    return [*rest, SCHEME + output]


def _read(arguments: list[str]) -> tuple[list[int], list[str]]:
    """Where the positional arguments stand, and the parameters as parts of a file name."""
    positions, label = [], []
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if argument == "-" or not argument.startswith("-"):
            positions.append(index - 1)
            continue
        if argument.startswith("--"):
            option, attached, value = argument.partition("=")
        else:
            option, value = argument[:2], argument[2:]
            attached = value
        wanted = 0 if option in NO_VALUE else (2 if option in TWO_VALUES else 1) - bool(attached)
        values = ([value] if attached else []) + arguments[index : index + wanted]
        index += wanted
        if option in PARAMETERS:
            label.append(_part("=".join(values)))
    return positions, label


def _part(text: str) -> str:
    """``text`` fit for a file name; what does not fit is replaced and told apart by a few digits."""
    part = re.sub(r"[^A-Za-z0-9=.,+_-]+", "-", text)[:60]
    return part if part == text else f"{part}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _is_ours(path: str) -> bool:
    file = Path(path)
    return file.suffix == ".ipynb" and file.resolve().parent == NOTEBOOKS and file.with_suffix(".py").exists()


def _is_local(path: str) -> bool:
    return path != "-" and "://" not in path


class Copies:
    """papermill's handler of output paths that start with ``SCHEME``."""

    def pretty_path(self, path: str) -> str:
        return path.removeprefix(SCHEME)

    def read(self, path: str) -> str:
        raise OSError(f"{path} can only be written.")

    def listdir(self, path: str) -> list[str]:
        raise OSError(f"{path} can only be written.")

    def write(self, text: str, path: str) -> None:
        """Check the injected parameters, then write the copy without pairing metadata.

        Raises:
            SystemExit: the notebook does not take these parameters; nothing has been written.
        """
        from papermill.iorw import papermill_io

        path = path.removeprefix(SCHEME)
        notebook = nbformat.reads(text, as_version=4)
        _check_parameters(notebook)
        notebook.metadata.pop("jupytext", None)
        notebook.metadata.papermill["output_path"] = path
        if Path(path).parent == RUNS:
            RUNS.mkdir(parents=True, exist_ok=True)
        papermill_io.write(nbformat.writes(notebook), path)


def _check_parameters(notebook: nbformat.NotebookNode) -> None:
    """Raises SystemExit with one sentence where the notebook's own validation would."""
    from minwidth import scales

    name = Path(notebook.metadata.papermill["input_path"]).stem
    given = notebook.metadata.papermill.get("parameters", {})
    if given and name in scales.NOTEBOOKS:
        try:
            scales.check_names(name, given)
            scales.validate(name, given)
        except scales.ParameterError as error:
            raise SystemExit(f"\n{error}") from None  # on a line of its own, after papermill's bar


def _is_papermill() -> bool:
    """Is this process the command ``papermill``, or ``python -m papermill``?"""
    return Path(sys.argv[0]).stem == "papermill" or (sys.argv[0] == "-m" and "papermill" in sys.orig_argv[1:3])


def _without_papermills_own_lines(kind: type[BaseException], error: BaseException, trace) -> None:
    """Of a notebook that failed, show what its cell shows; of anything else, all."""
    if kind.__name__ == "PapermillExecutionError":
        sys.stderr.write(f"{str(error).strip()}\n")
    else:
        sys.__excepthook__(kind, error, trace)


if _is_papermill():
    sys.argv[1:] = with_output_path(sys.argv[1:])
    sys.excepthook = _without_papermills_own_lines
copies = Copies()


def execute(paths: list[str]) -> None:
    """Synchronise the pairs at ``paths`` and execute the notebooks in place, without times in their metadata."""
    from nbclient import NotebookClient

    for path in paths:
        subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--sync", path], check=True)
        target = Path(path).with_suffix(".ipynb")
        notebook = nbformat.read(target, as_version=4)
        NotebookClient(
            notebook, timeout=None, record_timing=False, resources={"metadata": {"path": os.fspath(target.parent)}}
        ).execute()
        nbformat.write(notebook, target)


def without_solutions(paths: list[str], folder: Path) -> None:
    """Write each notebook to ``folder`` without its cells tagged ``solution``, without outputs and not as a pair."""
    import jupytext

    for path in paths:
        notebook = jupytext.read(Path(path).with_suffix(".py"))
        notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
        notebook.metadata.pop("jupytext", None)
        replace_file(folder / f"{Path(path).stem}.ipynb", nbformat.writes(notebook).encode())


def main(arguments: list[str] | None = None) -> None:
    """Synchronise pairs and execute them in place, or write them without their solutions."""
    parser = argparse.ArgumentParser(prog="python -m minwidth.notebooks", description=main.__doc__)
    parser.add_argument("notebooks", nargs="+", help="either side of a pair")
    parser.add_argument("--without-solutions", type=Path, metavar="FOLDER", help="where copies for students go")
    given = parser.parse_args(arguments)
    if given.without_solutions:
        without_solutions(given.notebooks, given.without_solutions)
    else:
        execute(given.notebooks)


if __name__ == "__main__":
    main()
