"""Make what goes with the templates: ``python3 dev.py workflows``.

For each ``workflows/NAME.json`` (drawn by hand in ComfyUI) the real frontend exports its API form to
``workflows/api/NAME.json``. The mini model runs it, and the template browser's picture ``workflows/NAME.jpg`` shows the
sound as Dasheng Spectrogram draws it, and the template's title. The first graph is photographed for the README.
"""

import base64
import json
import os
import sys
from pathlib import Path

from tools.comfyui import DATA, ROOT, SMALL_NAME, Server
from tools.example_inputs import write_inputs
from tools.frontend import export_api, load_workflow, open_frontend

WORKFLOWS = ROOT / "workflows"
PICTURE = ROOT / "docs" / "graph.png"
PICTURE_SIZE, SOUND_HEIGHT = 512, 400
PLAYERS = ("audioUI", "preview", "video-preview")
MODEL_WIDGETS = ("model_name", "text_encoder_name", "vae_name")


def main() -> None:
    server = Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), DATA)
    files = sorted(WORKFLOWS.glob("*.json"))
    with server, open_frontend(server) as page:
        write_inputs(server.base / "input")
        for file in files:
            load_workflow(page, json.loads(file.read_text("utf-8")), file.stem)
            api = without_players(export_api(page))
            (WORKFLOWS / "api" / file.name).write_text(json.dumps(api, indent=2, ensure_ascii=False) + "\n", "utf-8")
            if file == files[0]:
                # Below the app's own bars.
                page.evaluate("() => { window.app.canvas.ds.offset[1] += 90; window.app.canvas.setDirty(true, true); }")
                page.wait_for_timeout(1500)
                page.screenshot(path=PICTURE, clip={"x": 62, "y": 148, "width": 1700, "height": 620})
        page.set_viewport_size({"width": PICTURE_SIZE, "height": PICTURE_SIZE})
        for file in files:
            sound = draw_sound(server, json.loads((WORKFLOWS / "api" / file.name).read_text("utf-8")))
            page.set_content(draw(sound, file.stem.partition(" ")[2]))
            page.screenshot(path=file.with_suffix(".jpg"), type="jpeg", quality=85)


def without_players(api: dict) -> dict:
    """An API form without the widgets in which the frontend plays and previews, which nothing that runs it knows."""
    for node in api.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if name not in PLAYERS}
    return api


def draw_sound(server: Server, graph: dict) -> Path:
    """Run an API-format graph on the mini model; the file of its sound's picture."""
    for node in graph.values():
        node["inputs"].update({name: SMALL_NAME for name in MODEL_WIDGETS if name in node["inputs"]})
        if node["class_type"] == "DashengSpectrogram":
            node["inputs"].update(width=PICTURE_SIZE, row_height=SOUND_HEIGHT)
    (picture,) = [node_id for node_id, node in graph.items() if node["class_type"] == "DashengSpectrogram"]
    (image,) = server.run(graph)[picture]["images"]
    return server.temp / image["subfolder"] / image["filename"]


def draw(sound: Path, title: str) -> str:
    """A page: the sound, as many takes as there are side by side, and the template's title below."""
    image = base64.b64encode(sound.read_bytes()).decode()
    return f"""<body style="margin:0;background:#121218;color:#f2f4f7;font:600 40px sans-serif">
<img src="data:image/png;base64,{image}" style="width:{PICTURE_SIZE}px;height:{SOUND_HEIGHT}px">
<div style="padding:8px 24px">{title}</div></body>"""


if __name__ == "__main__":
    main()
