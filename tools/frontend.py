"""ComfyUI's real frontend in a headless Chromium: open it, load workflows, export and photograph them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tools.comfyui import Server

# Without them Chromium asks its maker for updates on every start.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY = "() => window.app?.graph && window.app?.extensionManager?.workflow?.activeWorkflow"


def find_chromium() -> str | None:
    """A Chromium or Chrome on this machine: ``CHROMIUM``, or the first one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=QUIET)
        yield browser
        browser.close()


@contextmanager
def open_frontend(server: Server, width: int = 1920, height: int = 1080) -> Iterator[Page]:
    """The frontend's page, ready for work; ``page.messages`` collects the messages of its console."""
    # A user's very first visit opens the template browser by itself, some time later.
    server.post("/settings/Comfy.TutorialCompleted", True)
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        # A busy machine is slow.
        page.set_default_timeout(180_000)
        page.messages = []
        page.on("console", lambda message: page.messages.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.messages.append(("error", str(error))))
        page.goto(f"http://{server.address}/", wait_until="domcontentloaded")
        page.wait_for_function(READY)
        yield page


def load_workflow(page: Page, workflow: dict, name: str) -> None:
    """Open a UI-format workflow as a user who drops its file on the canvas does."""
    page.evaluate(
        "([workflow, name]) => window.app.loadGraphData(workflow, true, true, name, {showMissingModelsDialog: false})",
        [workflow, name],
    )
    page.wait_for_timeout(500)


def export_api(page: Page) -> dict:
    """What the menu's *Export (API)* writes for the open workflow."""
    return json.loads(page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)"))
