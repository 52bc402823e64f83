"""The real frontend in headless Chromium, used as a sound designer uses it. Screenshots go to .dev/screenshots."""

import itertools
import json
import os

import pytest

from every_node import DOES_WITHOUT, HANDED_ON, every_node
from graphs import Graph
from tools.comfyui import DEV, PACK, ROOT, SMALL_NAME, Problem
from tools.frontend import export_api, find_chromium, load_workflow, open_frontend

SCREENSHOTS = DEV / "screenshots"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
# The box of the subgraph with models, sampler and decoder.
MAKE = "Make the sound"
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


def open_template(page, name: str, screenshot: str) -> None:
    """As a user does, from the template browser."""
    page.evaluate("() => window.app.graph.clear()")
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK, exact=True).first.click()
    card = page.get_by_test_id(f"template-workflow-{name}")
    card.wait_for()
    page.wait_for_function(
        "() => [...document.images].filter(image => image.src.endsWith('.jpg')).every(image => image.complete)"
    )
    page.screenshot(path=SCREENSHOTS / screenshot)
    card.click()
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")


def run_until_heard(page, players: int) -> None:
    """Press Run, and wait until so many players of the graph have a sound."""
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "count => [...document.querySelectorAll('audio')].filter(audio => audio.duration > 0.5).length >= count",
        arg=players,
    )
    page.wait_for_timeout(500)


def set_widget(page, node: str, name: str, value) -> None:
    """Of the first node with that type or title."""
    page.evaluate(
        """([shown, name, value]) => {
            const node = window.app.graph._nodes.find(node => node.type === shown || node.title === shown);
            node.widgets.find(widget => widget.name === name).value = value;
        }""",
        [node, name, value],
    )


def test_a_template_is_opened_and_run_to_a_playable_sound(page):
    open_template(page, WORKFLOWS[0].stem, "templates.png")
    run_until_heard(page, players=1)
    page.screenshot(path=SCREENSHOTS / "result.png")


@pytest.mark.parametrize("nodes_2, seconds", [(False, "two"), (True, "four")], ids=["classic", "Nodes 2.0"])
def test_a_box_says_what_its_nodes_said_and_keeps_what_is_set_at_it(page, nodes_2, seconds):
    """The first template's: its nodes are out of sight."""
    page.evaluate(USE_NODES_2, nodes_2)
    open_template(page, WORKFLOWS[0].stem, "templates_box.png")
    set_widget(page, MAKE, "seed", 77)
    # Of nodes that it remembers, ComfyUI 0.3.75 sends nothing again.
    set_widget(page, "What to hear", "caption", f"<Rain> with a low voice, about {seconds} seconds long.")
    run_until_heard(page, players=1)
    lines = page.evaluate(LINES, [MAKE, RESULTS])
    # ComfyUI 0.33 also sends again what the loader said.
    assert lines[0].startswith("\u26a0") and any("s estimated" in line for line in lines)
    # The nodes themselves are out of sight.
    assert all(any(found.is_visible() for found in page.get_by_text(line).all()) for line in lines[:2])
    page.screenshot(path=SCREENSHOTS / f"box, {'Nodes 2.0' if nodes_2 else 'classic'}.png")
    before = what_runs(export_api(page))
    assert [inputs["seed"] for kind, inputs in before.values() if kind == "DashengSampler"] == [77]
    saved = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    load_workflow(page, saved, "box, opened again")
    assert what_runs(export_api(page)) == before
    page.evaluate(USE_NODES_2, False)


def test_tooltips_show(page):
    x, y = place_of(page, "DashengSaveWAV", "bit_depth")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    tooltip = page.locator(".node-tooltip")
    tooltip.wait_for()
    assert "32 bit float keeps every peak" in tooltip.inner_text()
    page.screenshot(path=SCREENSHOTS / "tooltip.png")


def test_node_help_shows_our_page(page):
    page.mouse.click(*place_of(page, "DashengSpectrogram"))
    page.get_by_test_id("info-button").click()
    page.get_by_text("A picture of each take: waveform and mel spectrogram").first.wait_for()
    page.screenshot(path=SCREENSHOTS / "help.png")


def test_every_node_has_a_help_page(server):
    ours = [
        name for name, info in server.get("/object_info").items() if info["python_module"] == f"custom_nodes.{PACK}"
    ]
    assert sorted(ours) == sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


# Title, left, top, width and height of each node, with its title bar.
CLASSIC = """() => window.app.graph._nodes.map(
    node => [node.title, node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30])"""
USE_NODES_2 = "async on => await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
NODES_2 = """() => [...document.querySelectorAll('[data-node-id]')].map(shown => {
    const node = window.app.graph.getNodeById(shown.dataset.nodeId);
    return [node.title, node.pos[0], node.pos[1] - 30, shown.offsetWidth, shown.offsetHeight];
})"""


def overlaps(page, boxes: str, count: int) -> list[tuple[str, str]]:
    """Which of the open graph's nodes lie on one another."""
    found = page.evaluate(boxes)
    assert len(found) == count
    return [
        (a, b)
        for (a, x, y, width, height), (b, left, top, wide, high) in itertools.combinations(found, 2)
        if x < left + wide and left < x + width and y < top + high and top < y + height
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_the_api_form_is_what_the_frontend_exports(page, path):
    """Drift between the two: mend by ``python3 dev.py workflows``."""
    workflow = json.loads(path.read_text("utf-8"))
    load_workflow(page, workflow, path.stem)
    exported = what_runs(export_api(page))
    for node_id, (kind, inputs) in what_runs(json.loads((path.parent / "api" / path.name).read_text("utf-8"))).items():
        # Newer versions of ComfyUI have more inputs at their own nodes.
        added = {} if "Dasheng" in kind else exported[node_id][1]
        assert exported.pop(node_id) == (kind, {**added, **inputs})
    assert not exported
    assert overlaps(page, CLASSIC, len(workflow["nodes"])) == []


def test_no_node_lies_on_another_in_nodes_2(page, full):
    page.evaluate(USE_NODES_2, True)
    found = {}
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text("utf-8"))
        load_workflow(page, workflow, path.stem)
        if full:
            page.screenshot(path=SCREENSHOTS / f"{path.stem}.png")
        found[path.stem] = overlaps(page, NODES_2, len(workflow["nodes"]))
    page.evaluate(USE_NODES_2, False)
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem[:2], marks=() if p.stem[:2] in ("02", "17") else pytest.mark.full) for p in WORKFLOWS],
)
def test_what_nodes_show_after_a_run_has_room(page, server, path):
    """Texts, players and pictures make nodes taller."""
    workflow = json.loads(path.read_text("utf-8"))
    for on, boxes in ((False, CLASSIC), (True, NODES_2)):
        page.evaluate(USE_NODES_2, on)
        load_workflow(page, workflow, path.stem)
        # What ComfyUI remembers shows no text. The pictures of open tabs can lie over the button.
        server.post("/free", {"free_memory": True})
        page.evaluate("() => window.app.queuePrompt(0)")
        page.wait_for_timeout(1000)
        for _ in range(600):
            if not any(server.get("/queue").values()):
                break
            page.wait_for_timeout(100)
        page.wait_for_timeout(1000)
        page.screenshot(path=SCREENSHOTS / f"{path.stem}, run, {'Nodes 2.0' if on else 'classic'}.png")
        found = overlaps(page, boxes, len(workflow["nodes"]))
        page.evaluate(USE_NODES_2, False)
        assert found == []


@pytest.mark.parametrize("nodes_2, seed", [(False, 100), (True, 200)], ids=["classic", "Nodes 2.0"])
def test_ten_takes_are_heard_and_one_is_kept_by_mouse(page, server, nodes_2, seed):
    """A table with a player and a button for each take; what was said comes back with its tab."""
    page.evaluate(USE_NODES_2, nodes_2)
    (path,) = [path for path in WORKFLOWS if path.stem.startswith("02")]
    load_workflow(page, json.loads(path.read_text("utf-8")), path.stem)
    # Of nodes that it remembers, ComfyUI 0.3.75 sends nothing again.
    set_widget(page, MAKE, "seed", seed)
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.dasheng-results audio')].filter(audio => audio.duration > 0.5).length >= 2",
        timeout=300_000,
    )
    look_at(page, "DashengTakes")
    (rows,) = [table for table in page.locator(".dasheng-results table").all() if table.is_visible()]
    assert rows.locator("button", has_text="keep").count() == 10
    rows.locator("button", has_text="\u25b6").nth(6).click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.dasheng-results audio')].some(audio => audio.currentTime > 0)"
    )
    assert rows.locator("tr.playing").inner_text().startswith(f"7\t{seed + 6}\t")
    rows.locator("button", has_text="keep").nth(4).click()
    numbers = page.evaluate(
        """() => window.app.graph._nodes.filter(node => node.type === 'DashengPickTake')
            .map(node => node.widgets.find(widget => widget.name === 'number').value)"""
    )
    assert numbers == [5]
    page.screenshot(path=SCREENSHOTS / f"ten takes, {'Nodes 2.0' if nodes_2 else 'classic'}.png")
    load_workflow(page, json.loads(WORKFLOWS[0].read_text("utf-8")), "another")
    assert page.locator(".dasheng-results table").count() == 0
    page.evaluate(
        """async name => {
            const {workflow} = window.app.extensionManager;
            const tab = workflow.openWorkflows.findLast(tab => tab.key.includes(name));
            await window.app.loadGraphData(tab.activeState, true, true, tab);
        }""",
        path.stem,
    )
    page.wait_for_function("() => document.querySelectorAll('.dasheng-results table tr').length === 11")
    assert said_at(page, "DashengSaveWAV")[0] == "1 saved"
    page.evaluate(USE_NODES_2, False)


def look_at(page, node_type: str) -> None:
    """Show a node in its own size."""
    page.evaluate(
        """type => {
            const {canvas, graph} = window.app;
            const [x, y] = graph._nodes.find(node => node.type === type).pos;
            canvas.ds.scale = 1;
            canvas.ds.offset = [200 - x, 150 - y];
            canvas.setDirty(true, true);
        }""",
        node_type,
    )
    page.wait_for_timeout(1000)


@pytest.mark.full
def test_three_takes_become_a_delivered_file_that_opens_its_graph(page, server):
    """A designer's path: a template, three takes, one picked, finished and saved, and its graph back from the file."""
    (template,) = [path.stem for path in WORKFLOWS if path.stem.endswith("A one-shot for a game")]
    open_template(page, template, "templates_again.png")
    set_widget(page, MAKE, "batch_size", 3)
    set_widget(page, "DashengPickTake", "pick", "number")
    set_widget(page, "DashengSaveWAV", "filename_prefix", "designer/bell_%seed%")
    for number in (1, 2, 3):
        set_widget(page, "DashengPickTake", "number", number)
        run_until_heard(page, players=2)
        # Take i of a batch has seed + i.
        delivered = server.output / "designer" / f"bell_{19 + number}_00001.json"
        for _ in range(600):
            if delivered.exists():
                break
            page.wait_for_timeout(100)
        assert delivered.with_suffix(".wav").exists()
        # As it lies on the canvas, with its notes, and not only as it runs.
        assert "MarkdownNote" in [node["type"] for node in json.loads(delivered.read_text("utf-8"))["nodes"]]
    page.screenshot(path=SCREENSHOTS / "delivered.png")
    before = what_runs(export_api(page))
    drop_on_canvas(page, delivered)
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")
    page.screenshot(path=SCREENSHOTS / "dropped.png")
    assert what_runs(export_api(page)) == before


def drop_on_canvas(page, file) -> None:
    """Clear the graph, and drop a file where it was."""
    page.evaluate(
        """([name, text]) => {
            window.app.graph.clear();
            const data = new DataTransfer();
            data.items.add(new File([text], name, {type: 'application/json'}));
            const drop = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
            document.querySelector('#graph-canvas').dispatchEvent(drop);
        }""",
        [file.name, file.read_text("utf-8")],
    )


def test_the_blueprint_is_found_and_runs(page, server):
    """The whole chain as one node, from the node search."""
    empty = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}
    load_workflow(page, empty, "blueprint")
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.locator("input:focus").fill("Scene to sound")
    # Enter takes the first row, which is another one while the search still runs. ComfyUI 0.3.75 has an empty row before it.
    page.wait_for_function(
        """() => [...document.querySelectorAll('[role=option]')].find(row => row.innerText.trim())
            ?.innerText.includes('Scene to sound')"""
    )
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.app.graph._nodes.length === 1")
    page.mouse.click(900, 500)
    page.screenshot(path=SCREENSHOTS / "blueprint.png")
    page.evaluate(
        """() => {
            const listen = window.LiteGraph.createNode('PreviewAudio');
            const [blueprint] = window.app.graph._nodes;
            window.app.graph.add(listen);
            blueprint.connect(0, listen, 0);
        }"""
    )
    kind = page.evaluate("() => window.app.graph._nodes[0].type")
    scene = {name: f"Rain, {name}." for name in ("caption", "speech", "asr", "sfx", "music", "env")}
    for name, value in {**scene, "seconds": 1.0, "seed": 7}.items():
        set_widget(page, kind, name, value)
    graph = export_api(page)
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    assert inputs["DashengScenePrompt"] == scene
    assert inputs["EmptyDashengLatentAudio"]["seconds"] == 1.0 and inputs["DashengSampler"]["seed"] == 7
    assert [output["audio"] for output in server.run(graph).values() if "audio" in output]


@pytest.mark.parametrize("path", SHARED, ids=[path.stem for path in SHARED])
def test_a_workflow_shared_before_opens_as_it_was(page, path):
    """Inputs added since may stand in it, with their defaults."""
    load_workflow(page, json.loads(path.read_text("utf-8")), path.stem)
    opened = what_runs(export_api(page))
    for node_id, (kind, inputs) in what_runs(json.loads((path.parent / "api" / path.name).read_text("utf-8"))).items():
        assert opened[node_id][0] == kind and opened[node_id][1].items() >= inputs.items()


RESULTS = "dasheng_results"
LINES = """([shown, name]) => [...window.app.graph._nodes.find(node => node.type === shown || node.title === shown).widgets
    .find(widget => widget.name === name).element.children].map(line => line.textContent)"""


def said_at(page, node_type: str) -> list[str]:
    """What stands at the foot of a node, line by line."""
    return page.evaluate(LINES, [node_type, RESULTS])


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
    page.wait_for_function("() => [...document.querySelectorAll('audio')].some(audio => audio.duration > 0.5)")
    page.evaluate("() => { window.app.canvas.ds.scale = 0.6; window.app.canvas.setDirty(true, true); }")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "saved_wav.png")
    assert said_at(page, "DashengFinish")[0].startswith("take 1: 1")
    names = ["browser/rain_2_00001.wav", "browser/rain_2_00002.wav"]
    assert said_at(page, "DashengSaveWAV") == ["2 saved", *names]
    sidecar = server.output / "browser" / "rain_2_00002.json"
    page.evaluate(
        """text => {
            window.app.graph.clear();
            const data = new DataTransfer();
            data.items.add(new File([text], 'rain_2_00002.json', {type: 'application/json'}));
            const options = {dataTransfer: data, bubbles: true, cancelable: true};
            document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', options));
        }""",
        sidecar.read_text("utf-8"),
    )
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")
    assert what_runs(export_api(page)) == before


RUN = "window.PWNED=1"
# What frontend 1.32 makes of a text: elements, entities, links, and a link's address within another's, whose quotes it ends;
# and what Markdown is in Nodes 2.0, whose pictures are asked of their server.
HOSTILE = {
    "caption": f"<img src=x onerror={RUN}>",
    "honest": "A cat <Laughter:1> meows.",
    "frame": f"<iframe srcdoc='<script>parent.{RUN[7:]}</script>'>",
    "entity": f"&lt;svg onload={RUN}&gt; \u2603",
    "link": f"[[a|http://b onmouseover={RUN} x]] <|sfx|> www.c/__LNK0__ \u2603",
    "picture": "![a](//127.0.0.1:9/b.png) [c](//d) \u2603",
    "marks": "*sighs* __e__ ~~f~~ `g` a@b.co \u2603",
}
TEXTS = ".dasheng-results, .break-all > span, .comfy-markdown-content"


def test_no_text_of_a_workflow_acts_and_all_of_it_is_seen(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "127.0.0.1:9/" in request.url else None)
    graph = Graph()
    model, clip, vae = graph.loaders()
    encoded = {name: graph.encode(clip, f"<|caption|> {text}") for name, text in HOSTILE.items()}
    for source in encoded.values():
        graph.add("PreviewAny", source=source(1))
    latent = graph.add("EmptyDashengLatentAudio", seconds=1.0, batch_size=1)
    sampled = graph.sample(model, encoded["caption"], latent, steps=1)
    options = dict(bit_depth="24 bit", loop=False, loop_start=0.0, loop_end=0.0, markers="")
    prefix = f"browser/<img src=x onerror={RUN}>"
    audio = graph.add("DashengDecode", vae=vae, latent=sampled)
    graph.add("DashengSaveWAV", audio=audio, filename_prefix=prefix, **options)
    page.evaluate("graph => window.app.loadApiJson(graph, 'hostile')", graph.nodes)
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'DashengSaveWAV')")
    page.evaluate("() => { window.PWNED = 0; window.app.queuePrompt(0); }")
    page.wait_for_function("() => [...document.querySelectorAll('audio')].some(audio => audio.duration > 0.5)")
    page.wait_for_timeout(500)
    # A marker is quoted in an error, which a dialog shows.
    set_widget(page, "DashengSaveWAV", "markers", f"<img src=x onerror={RUN}>")
    page.evaluate("() => window.app.queuePrompt(0)")
    # From 1.40 on it first says that there is one.
    details = page.get_by_role("button", name="View details")
    said = page.get_by_text("does not begin with a second")
    details.or_(said).first.wait_for()
    if details.count():
        details.click()
    said.first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "hostile.png")
    page.keyboard.press("Escape")
    for on in (False, True):
        page.evaluate(USE_NODES_2, on)
        page.wait_for_timeout(1000)
        page.screenshot(path=SCREENSHOTS / f"hostile, {'Nodes 2.0' if on else 'classic'}.png")
        seen, made = page.evaluate(
            """where => {
                const shown = [...document.querySelectorAll(where)];
                const made = shown.flatMap(text => [...text.querySelectorAll('*')]).map(made => made.tagName);
                return [shown.map(text => text.textContent), made.filter(tag => !['BR', 'P', 'DIV'].includes(tag))];
            }""",
            TEXTS,
        )
        assert page.evaluate("() => window.PWNED") == 0 and made == [] and asked == []
        # A message quotes forty letters.
        for text in (*HOSTILE.values(), "www.c/__LNK0__", "browser/_img src=x onerror="):
            assert any(text[:36] in said for said in seen), text
    page.evaluate(USE_NODES_2, False)


SHOWN = ("audioUI", "preview", "video-preview")


def what_runs(api: dict) -> dict:
    """An API form without what changes with ComfyUI's version and does not run: titles, and what players and texts show."""
    return {
        node_id: (node["class_type"], {name: value for name, value in node["inputs"].items() if name not in SHOWN})
        for node_id, node in api.items()
    }


BYPASS, MUTE = 4, 2
SET_MODE = "([id, mode]) => { window.app.graph.getNodeById(id).mode = mode; }"


@pytest.fixture(scope="module")
def every(page) -> dict:
    """A graph with each of our nodes, open; in API form as the frontend exports it."""
    page.evaluate("graph => window.app.loadApiJson(graph, 'every node')", every_node(SMALL_NAME).nodes)
    page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'VAEDecodeAudio')")
    exported = export_api(page)
    assert what_runs(exported) == what_runs(every_node(SMALL_NAME).nodes)
    return exported


@pytest.mark.parametrize("mode", [BYPASS, MUTE], ids=["bypassed", "muted"])
def test_without_a_node_the_chain_is_what_it_was_or_is_refused(page, server, every, mode):
    """Each of the pack's nodes in turn: what it got goes to those behind it, or the server names what they lack."""
    known = server.get("/object_info")
    ours = {node_id: node["class_type"] for node_id, node in every.items() if "Dasheng" in node["class_type"]}
    assert {*ours.values()} == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    for node_id, kind in ours.items():
        page.evaluate(SET_MODE, [node_id, mode])
        left = export_api(page)
        page.evaluate(SET_MODE, [node_id, 0])
        assert left.keys() == every.keys() - {node_id}
        lacking = set()
        for other_id, other in left.items():
            for name, before in every[other_id]["inputs"].items():
                after = other["inputs"].get(name)
                if not isinstance(before, list) or before[0] != node_id:
                    assert after == before
                    continue
                # All of these outputs are sounds.
                hands_on = mode == BYPASS and (before[1] == 0 or kind == "DashengStems")
                handed = every[node_id]["inputs"].get(HANDED_ON.get(kind)) if hands_on else None
                required, optional = (known[other["class_type"]]["input"].get(g, {}) for g in ("required", "optional"))
                if handed is not None:
                    assert after == handed
                elif {**required, **optional}[name][0] in ("STRING", "FLOAT", "INT"):
                    # The value of its own widget, which 0.3.75's frontend leaves out too behind a muted node.
                    assert not isinstance(after, list)
                else:
                    assert after is None
                if after is None and name in required:
                    lacking.add((other_id, name))
                elif after is None:
                    assert (other["class_type"], name) in DOES_WITHOUT
        assert lacking == missing_by(server, left, lacking)


def missing_by(server, graph: dict, lacking: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The nodes and inputs for which ComfyUI refuses the part of a graph behind those that lack an input."""
    if not lacking:
        return set()
    behind = {node_id for node_id, _ in lacking}
    # In the order of their numbers a node stands behind those that it needs.
    for node_id in sorted(graph, key=int):
        if any(isinstance(value, list) and value[0] in behind for value in graph[node_id]["inputs"].values()):
            behind.add(node_id)
    ends = behind - {
        value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)
    }
    with pytest.raises(Problem) as refused:
        server.post("/prompt", {"prompt": graph, "partial_execution_targets": sorted(ends)})
    errors = json.loads(str(refused.value).partition(": ")[2])["node_errors"]
    return {
        (node_id, error["extra_info"]["input_name"])
        for node_id, node in errors.items()
        for error in node["errors"]
        if error["type"] == "required_input_missing"
    }


def test_a_muted_timeline_takes_no_stretch_before_it_away(page, server, every):
    """The one in the middle of three; the same inside of a subgraph, as the app makes it."""
    first, middle, last = (node_id for node_id, node in every.items() if node["class_type"] == "DashengTimeline")
    said = f"timeline comes from DashengTimeline (node {middle}), which is muted, and with it the spans before it"
    page.evaluate(SET_MODE, [middle, MUTE])
    assert said in error_of_run(page, server)
    page.evaluate(
        """ids => {
            const {graph} = window.app;
            graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id))));
        }""",
        [first, middle, last],
    )
    assert said in error_of_run(page, server)
    # All before it muted: nothing is lost that was on.
    page.evaluate(
        "id => { window.app.graph._nodes.find(node => node.subgraph).subgraph.getNodeById(id).mode = 2; }", first
    )
    assert said not in error_of_run(page, server)


def error_of_run(page, server) -> str:
    """Run the open graph, and give the error that it ends with."""
    page.evaluate("() => window.app.queuePrompt(0)")
    for _ in range(600):
        page.wait_for_timeout(100)
        if not any(server.get("/queue").values()):
            break
    *_, entry = server.get("/history").values()
    return " ".join(
        body["exception_message"] for kind, body in entry["status"]["messages"] if kind == "execution_error"
    )


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
