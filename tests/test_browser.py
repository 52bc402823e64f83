"""The real frontend in headless Chromium, used as a sound designer uses it. Screenshots go to .dev/screenshots."""

import json
import os

import pytest

from graphs import Graph
from tools.comfyui import DEV, PACK, ROOT
from tools.frontend import export_api, find_chromium, load_workflow, open_frontend

SCREENSHOTS = DEV / "screenshots"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SHARED = sorted((ROOT / "tests" / "shared_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    if find_chromium() is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no Chromium on this machine, and REQUIRE_BROWSER asks for one")
        pytest.skip("no Chromium on this machine: install one, or set CHROMIUM to its path")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with open_frontend(server) as page:
        page.failures = []
        page.on("response", lambda reply: page.failures.append(reply.url) if reply.status >= 400 else None)
        yield page


def place_of(page, node_type: str, widget: str | None = None) -> tuple[float, float]:
    """Where a node's title, or one of its widgets, is on the screen."""
    return page.evaluate(
        """([type, name]) => {
            const {canvas, graph} = window.app;
            const node = graph._nodes.find(node => node.type === type);
            const y = name ? node.widgets.find(widget => widget.name === name).last_y + 10 : -12;
            const [left, top] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 90, node.pos[1] + y]);
            const box = canvas.canvas.getBoundingClientRect();
            return [left + box.left, top + box.top];
        }""",
        [node_type, widget],
    )


def test_a_template_is_opened_and_run_to_a_playable_sound(page):
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK, exact=True).first.click()
    card = page.get_by_test_id("template-workflow-text_to_audio")
    card.wait_for()
    page.wait_for_function(
        "() => [...document.images].filter(image => image.src.endsWith('.jpg')).every(image => image.complete)"
    )
    page.screenshot(path=SCREENSHOTS / "templates.png")
    card.click()
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSampler')")
    page.get_by_test_id("queue-button").click()
    player = page.locator("audio")
    page.wait_for_function(
        "() => [...document.querySelectorAll('audio')].some(audio => audio.duration > 0)", timeout=60_000
    )
    assert player.evaluate("audio => audio.duration") > 0.5
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "result.png")


def test_tooltips_show(page):
    x, y = place_of(page, "DashengSampler", "sway")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    tooltip = page.locator(".node-tooltip")
    tooltip.wait_for()
    assert "Where the steps lie" in tooltip.inner_text()
    page.screenshot(path=SCREENSHOTS / "tooltip.png")


def test_node_help_shows_our_page(page):
    page.mouse.click(*place_of(page, "DashengSampler"))
    page.get_by_test_id("info-button").click()
    page.get_by_text("Samples as the published model does: Euler steps on the sway schedule").first.wait_for()
    page.screenshot(path=SCREENSHOTS / "help.png")


def test_every_node_has_a_help_page(server):
    ours = [
        name for name, info in server.get("/object_info").items() if info["python_module"] == f"custom_nodes.{PACK}"
    ]
    assert sorted(ours) == sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_the_api_form_is_what_the_frontend_exports(page, path):
    """Drift between the two: mend by ``python3 dev.py workflows``."""
    load_workflow(page, json.loads(path.read_text("utf-8")), path.stem)
    assert what_runs(export_api(page)) == what_runs(json.loads((path.parent / "api" / path.name).read_text("utf-8")))


@pytest.mark.parametrize("path", SHARED, ids=[path.stem for path in SHARED])
def test_a_workflow_shared_before_opens_as_it_was(page, path):
    """Inputs added since may stand in it, with their defaults."""
    load_workflow(page, json.loads(path.read_text("utf-8")), path.stem)
    opened = what_runs(export_api(page))
    for node_id, (kind, inputs) in what_runs(json.loads((path.parent / "api" / path.name).read_text("utf-8"))).items():
        assert opened[node_id][0] == kind and opened[node_id][1].items() >= inputs.items()


def test_a_saved_wav_plays_and_what_lies_beside_it_opens_the_graph(page, server):
    """The node has the app's own player and says what it did; the .json is dropped on the canvas."""
    graph = Graph()
    model, clip, vae = graph.loaders()
    latent = graph.add("EmptyDashengLatentAudio", seconds=1.0, batch_size=2)
    sampled = graph.sample(model, graph.encode(clip, "<|caption|> Rain."), latent, steps=2)
    audio = graph.add("DashengDecode", vae=vae, latent=sampled)
    finished = graph.add(
        "DashengFinish", audio=audio, trim=True, trim_below=-60.0, padding=0.05, fade_in=0.01, fade_out=0.05,
        level="loudness", target=-23.0,
    )  # fmt: skip
    options = dict(bit_depth="24 bit", loop=False, loop_start=0.0, loop_end=0.0, markers="")
    graph.add("DashengSaveWAV", audio=finished, filename_prefix="browser/rain_%DashengSampler.steps%", **options)
    page.evaluate("graph => window.app.loadApiJson(graph, 'finish')", graph.nodes)
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")
    before = what_runs(export_api(page))
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('audio')].some(audio => audio.duration > 0.5)", timeout=60_000
    )
    page.evaluate("() => { window.app.canvas.ds.scale = 0.6; window.app.canvas.setDirty(true, true); }")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "saved_wav.png")
    shown = """type => window.app.graph._nodes.find(node => node.type === type).widgets
        .find(widget => widget.name === '$$node-text-preview').value"""
    assert page.evaluate(shown, "DashengFinish").startswith("take 1: 1")
    assert page.evaluate(shown, "DashengSaveWAV") == "2 saved, the first is rain_2_00001_.wav"
    sidecar = server.output / "browser" / "rain_2_00002_.json"
    page.evaluate(
        """text => {
            window.app.graph.clear();
            const data = new DataTransfer();
            data.items.add(new File([text], 'rain_2_00002_.json', {type: 'application/json'}));
            const options = {dataTransfer: data, bubbles: true, cancelable: true};
            document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', options));
        }""",
        sidecar.read_text("utf-8"),
    )
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")
    assert what_runs(export_api(page)) == before


def what_runs(api: dict) -> dict:
    """An API form without what changes with ComfyUI's version and does not run: titles, and the audio player's state."""
    return {
        node_id: (node["class_type"], {name: value for name, value in node["inputs"].items() if name != "audioUI"})
        for node_id, node in api.items()
    }


def test_the_browser_found_nothing_wrong_with_the_pack(page):
    """Runs last: console errors that name the pack's files, and anything of the pack that was not found."""
    ours = (f"/extensions/{PACK}", f"/{PACK}/", "Dasheng")
    # Help looks for a translated page first; api.comfy.org is refused by --disable-api-nodes.
    failures = [url for url in page.failures if any(name in url for name in ours) and not url.endswith("/en.md")]
    errors = [
        text
        for kind, text in page.messages
        if kind == "error" and any(name in text for name in ours) and "api.comfy.org" not in text
    ]
    assert not failures and not errors
