"""JupyterLab as a reader has it: a real server, a real browser, every notebook opened, 01 and 02 run, a slider moved.

Left out unless asked for with ``-m browser``; ``make test`` runs it after nbval, which leaves the toy sweep's records.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from minwidth.scales import NOTEBOOKS
from minwidth.store import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: install Chromium, as in apt-get install chromium"),
]

QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
MINUTE = 60_000  # ms
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, not those in view
}
CELLS = """() => jupyterapp.shell.currentWidget.context.model.sharedModel.cells.map(cell => ({
  kind: cell.cell_type, source: cell.getSource(), count: cell.execution_count ?? null,
  outputs: cell.cell_type === 'code' ? cell.getOutputs() : []}))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the notebooks: what the browser saves stays out of the repository."""
    return Path(shutil.copytree(ROOT / "notebooks", tmp_path_factory.mktemp("lab") / "notebooks"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where JupyterLab serves ``folder``; its settings and all that it keeps lie beside that."""
    home = folder.parent / "home"
    for plugin, settings in SETTINGS.items():
        file = home / "settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    places = {f"JUPYTER_{kind}_DIR": home / kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{kind}_DIR": home / kind.lower() for kind in ("SETTINGS", "WORKSPACES")}
    places |= {"IPYTHONDIR": home / "ipython", "MINWIDTH_ROOT": ROOT}
    said = folder.parent / "log"
    with said.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
             "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}",
             "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"],
            env=os.environ | {name: str(place) for name, place in places.items()},
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not _answers(f"http://127.0.0.1:{port}/api"):
                assert server.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab?token={token}"
        finally:
            server.terminate()
            server.wait(30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except urllib.error.URLError:
        return False
    return True


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory) -> Iterator[Page]:
    """JupyterLab, loaded."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=CHROMIUM, headless=True, chromium_sandbox=False,
            args=QUIET.split(), viewport={"width": 1280, "height": 1000},
        )  # fmt: skip
        expect.set_options(timeout=MINUTE)
        page = context.pages[0]
        page.set_default_timeout(15 * MINUTE)  # a busy machine, and the toy sweep where no record of it is found
        page.goto(address)
        page.wait_for_function("() => globalThis.jupyterapp?.restored.then(() => true)")
        yield page
        context.close()


def command(page: Page, name: str, **given: str) -> None:
    """Have JupyterLab do what its menus do, to its end."""
    page.evaluate("([name, given]) => jupyterapp.commands.execute(name, given).then(() => null)", [name, given])


def show(page: Page, name: str) -> None:
    """Open a notebook with a kernel of its own: the toolbar says idle before there is one, so the kernel is asked."""
    command(page, "docmanager:open", path=f"{name}.ipynb")
    page.wait_for_function(
        """name => {
          const context = jupyterapp.shell.currentWidget?.context
          const kernel = context?.path === name && context.sessionContext.session?.kernel
          return kernel && context.sessionContext.isReady
            && kernel.status === 'idle' && kernel.connectionStatus === 'connected' }""",
        arg=f"{name}.ipynb",
    )


def run_all(page: Page, name: str) -> None:
    """Run every cell of the notebook shown, old outputs removed first, and compare with what is committed."""
    page.evaluate("() => jupyterapp.shell.currentWidget.context.sessionContext.restartKernel()")
    command(page, "notebook:clear-all-cell-outputs")
    assert not [cell for cell in page.evaluate(CELLS) if cell["outputs"] or cell["count"]]
    command(page, "notebook:run-all-cells")
    cells = page.evaluate(CELLS)
    for cell, expected in zip(cells, committed(name), strict=True):
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert cell["source"] == expected.source
        assert "error" not in kinds, cell
        if "nbval-ignore-output" not in expected.metadata.get("tags", []):  # a bar shows where there is work to do
            assert bool(kinds) == bool(expected.get("outputs")), cell["source"]
    counts = [cell["count"] for cell in cells if cell["kind"] == "code" and cell["source"].strip()]
    assert counts == list(range(1, len(counts) + 1))
    drawn = [output for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert drawn and len(seen(page)) >= len(drawn)


def committed(name: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def seen(page: Page) -> list[str]:
    """The pictures among the outputs of the notebook shown, each with pixels in it."""
    pictures = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea img")
    pictures.first.wait_for()
    page.wait_for_function(
        "images => images.every(image => image.complete && image.naturalWidth > 100)", arg=pictures.element_handles()
    )
    return [picture.get_attribute("src") for picture in pictures.all()]


def title(name: str) -> str:
    return committed(name)[0].source.splitlines()[0].removeprefix("# ").replace("*", "")


def heading(page: Page) -> Locator:
    return page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").first


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_opens_with_its_outputs(page: Page, name: str):
    show(page, name)
    expect(heading(page)).to_contain_text(title(name))
    outputs = [len(cell.get("outputs", [])) for cell in committed(name)]
    assert [len(cell["outputs"]) for cell in page.evaluate(CELLS)] == outputs
    assert seen(page)


def test_all_of_01_runs_and_moving_a_slider_redraws_its_figure(page: Page):
    show(page, "01_theory")
    run_all(page, "01_theory")
    slider = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .widget-slider").first
    before, said = seen(page), slider.locator(".widget-readout").text_content()
    slider.locator(".noUi-handle[role=slider]").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    expect(slider.locator(".widget-readout")).not_to_have_text(said)
    deadline = time.monotonic() + 60
    while sum(old != new for old, new in zip(before, seen(page), strict=True)) != 1:  # drawn after the readout changed
        assert time.monotonic() < deadline, "the figure stays as it was"
        time.sleep(0.2)


def test_all_of_02_runs_and_saving_keeps_the_pair_in_step(page: Page, folder: Path):
    show(page, "02_toy_sweep")
    run_all(page, "02_toy_sweep")
    command(page, "docmanager:save")
    saved = nbformat.read(folder / "02_toy_sweep.ipynb", as_version=4).cells
    assert [bool(cell.get("outputs")) for cell in saved] == [bool(cell["outputs"]) for cell in page.evaluate(CELLS)]
    assert (folder / "02_toy_sweep.py").read_text() == (ROOT / "notebooks" / "02_toy_sweep.py").read_text()


def test_an_edited_py_shows_after_reloading_with_the_outputs_kept(page: Page, folder: Path):
    show(page, "06_ledger")
    command(page, "docmanager:save")
    outputs = [cell["outputs"] for cell in page.evaluate(CELLS)]
    file = folder / "06_ledger.py"
    time.sleep(0.1)  # which side is the newer one is told by their times
    file.write_text(file.read_text().replace(title("06_ledger"), "Edited elsewhere", 1))
    command(page, "docmanager:reload")
    expect(heading(page)).to_contain_text("Edited elsewhere")
    assert [cell["outputs"] for cell in page.evaluate(CELLS)] == outputs and any(outputs)
