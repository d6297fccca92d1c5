"""How papermill runs a notebook of this project.

papermill loads ``copies`` through the entry point ``papermill.io`` before it makes its command, which then becomes a
``Command``. For a notebook of this project the output path may be left out (``papermill 04_distill.ipynb -p width 512``
writes ``runs/04_distill__width=512.ipynb``), a parameter that the notebook cannot take ends the command with one
sentence before anything is run or written, a copy is no pair of jupytext's, and a committed notebook is never
overwritten. On a terminal, papermill's line also tells what the running cell does, and 08 leaves a page besides. Other
notebooks, and papermill called from Python, are left as they are.
"""

import hashlib
import html
import re
import time
from pathlib import Path
from unittest.mock import patch

import click
import nbformat

from minwidth.store import ROOT, RUNS, replace_file

NOTEBOOKS = ROOT / "notebooks"
SCHEME = "minwidth-copy:"
PAGES = ("08_your_model",)  # notebooks whose copies are also left as a page
WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST = 190  # characters of a copy's name; a file's may have 255 bytes
REDRAWN = 0.5  # seconds between two states of papermill's line


class Command(click.Command):
    """papermill's command, which reads its own options; then the output of a notebook of ours goes to ``Copies``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, list(args))
        given, output = ctx.params["notebook_path"], ctx.params["output_path"]
        if _is_ours(output):
            raise click.ClickException(f"{output} is a notebook of this project; name another path for the copy.")
        if _is_ours(given) and not ctx.params["help_notebook"] and output != "-" and "://" not in output:
            if not output:
                label = "__".join([Path(given).stem, *_label(ctx.params)])
                if len(label) > LONGEST:
                    label = f"{label[:LONGEST]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
                output = str(RUNS / f"{label}.ipynb")
                output = output.replace("{", "{{").replace("}", "}}")  # papermill fills braces from the parameters
            ctx.params["output_path"] = SCHEME + output
        return rest

    def invoke(self, ctx: click.Context):
        """Run; of a notebook that failed, show what its cell shows and nothing of papermill's own lines."""
        from papermill import engines
        from papermill.exceptions import PapermillExecutionError

        telling = type("Client", (Telling, engines.PapermillNotebookClient), {})
        try:
            with patch.object(engines, "PapermillNotebookClient", telling):  # papermill has no hook for what cells say
                super().invoke(ctx)
        except PapermillExecutionError as error:
            click.echo(str(error).strip(), err=True)
            ctx.exit(1)
        ours = ctx.params["output_path"].startswith(SCHEME) and not ctx.params["prepare_only"]
        if ours and Path(ctx.params["notebook_path"]).stem in PAGES:
            click.echo(f"A page to read and to pass on: {page(copies.written)}", err=True)


class Telling:
    """Of papermill's client: its own line tells what the bar that moved last says, or the last line of text."""

    shown = 0.0

    def process_message(self, msg: dict, *arguments):
        output = super().process_message(msg, *arguments)
        bar = self.nb_man.pbar
        if bar is None or bar.disable or not bar.fp.isatty():
            return output
        if msg["msg_type"] == "execute_input":
            bar.set_postfix_str("", refresh=False)
        elif said := self._said(msg):
            bar.bar_format = "{n_fmt}/{total_fmt} cells |{bar:10}| [{elapsed}{postfix}]"
            bar.set_postfix_str("".join(c for c in said if c.isprintable()), refresh=False)
            if time.monotonic() > self.shown + REDRAWN:
                self.shown = time.monotonic()
                bar.refresh()
        return output

    def _said(self, msg: dict) -> str:
        if msg["msg_type"] == "stream":
            return next((line.strip() for line in reversed(msg["content"]["text"].splitlines()) if line.strip()), "")
        moved = f"IPY_MODEL_{msg['content'].get('comm_id')}"
        for state in self.widget_state.values():  # tqdm's bar is a box of a text, a bar and a text
            if (children := state.get("children", [])) and moved == children[-1]:
                left, right = (self.widget_state[children[n].removeprefix("IPY_MODEL_")] for n in (0, -1))
                return html.unescape(left.get("value", "") + right.get("value", "")).replace("\u2007", " ")
        return ""


def page(copy: Path) -> Path:
    """An executed copy as a page of its own beside it: no code, no bars, no exercises."""
    from nbconvert import HTMLExporter

    notebook = nbformat.read(copy, as_version=4)
    ends = [number for number, cell in enumerate(notebook.cells) if cell.source.startswith("## Exercises")]
    notebook.cells = notebook.cells[: ends[0] if ends else None]
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    exporter = HTMLExporter(exclude_input=True, exclude_output_prompt=True)
    exporter.log.setLevel("ERROR")  # it warns of every figure without a text of its own
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": copy.stem}})
    replace_file(copy.with_suffix(".html"), text.encode())
    return copy.with_suffix(".html")


def _label(params: dict) -> list[str]:
    """The parameters on papermill's command line as parts of a file name; what does not fit one is replaced."""
    said = [value for name, values in params.items() if name.startswith("parameters") for value in values or ()]
    texts = ["=".join(value) if isinstance(value, tuple) else value for value in said]
    parts = [re.sub(r"[^A-Za-z0-9=.,+_-]+", "-", text)[:60] for text in texts]
    digests = [hashlib.sha256(text.encode()).hexdigest()[:6] for text in texts]
    return [p if p == text else f"{p}-{digest}" for p, text, digest in zip(parts, texts, digests, strict=True)]


def _is_ours(path: str | None) -> bool:
    file = Path(path or "")
    return file.suffix == ".ipynb" and file.resolve().parent == NOTEBOOKS and file.with_suffix(".py").exists()


class Copies:
    """papermill's handler of output paths that start with ``SCHEME``."""

    written: Path  # the copy written last

    def pretty_path(self, path: str) -> str:
        return path.removeprefix(SCHEME)

    def read(self, path: str) -> str:
        raise OSError(f"{path} can only be written.")

    listdir = read

    def write(self, text: str, path: str) -> None:
        """Check the injected parameters, then write the copy without pairing metadata.

        Raises:
            SystemExit: the notebook does not take these parameters; nothing has been written.
        """
        from papermill.iorw import papermill_io

        from minwidth import scales

        path, notebook = path.removeprefix(SCHEME), nbformat.reads(text, as_version=4)
        said = notebook.metadata.papermill
        name, given = Path(said["input_path"]).stem, said.get("parameters", {})
        try:
            scales.parameters(name, **given)
        except scales.ParameterError as error:
            raise SystemExit(f"\n{error}") from None  # on a line of its own, after papermill's bar
        notebook.metadata.pop("jupytext", None)
        said["output_path"] = path
        self.written = Path(path)
        if self.written.parent == RUNS:
            RUNS.mkdir(parents=True, exist_ok=True)
        papermill_io.write(nbformat.writes(notebook), path)


_click_command, copies = click.command, Copies()


def _make_command(*arguments, **options):
    """``click.command``, which makes papermill's of class ``Command``."""

    def decorate(function):
        ours = {"cls": Command} if getattr(function, "__module__", "") == "papermill.cli" else {}
        return _click_command(*arguments, **options, **ours)(function)

    return decorate


click.command = _make_command  # papermill loads this module before it makes its command
