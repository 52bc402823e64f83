"""Make what goes with the workflows: ``python3 dev.py workflows``.

For each ``workflows/NAME.json`` (drawn by hand in ComfyUI) the real frontend exports its API form to
``workflows/api/NAME.json``, and Chromium draws the template browser's picture ``workflows/NAME.jpg``. The graph of
``text_to_audio`` is photographed for the README.
"""

import json
import os
import sys
from pathlib import Path

from tools.comfyui import DATA, ROOT, Server
from tools.frontend import export_api, load_workflow, open_frontend

WORKFLOWS = ROOT / "workflows"
PICTURE = ROOT / "docs" / "graph.png"
PICTURE_SIZE = 512
# The frontend's own colours of the wires.
WIRES = {
    "MODEL": "#B39DDB",
    "CLIP": "#FFD500",
    "VAE": "#FF6E6E",
    "CONDITIONING": "#FFA931",
    "LATENT": "#FF9CF9",
    "AUDIO": "#8FCF9B",
}


def main() -> None:
    server = Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), DATA)
    with server, open_frontend(server) as page:
        for file in sorted(WORKFLOWS.glob("*.json")):
            workflow = json.loads(file.read_text("utf-8"))
            load_workflow(page, workflow, file.stem)
            api = export_api(page)
            (WORKFLOWS / "api" / file.name).write_text(json.dumps(api, indent=2, ensure_ascii=False) + "\n", "utf-8")
            if file.stem == "text_to_audio":
                page.wait_for_timeout(1500)
                page.screenshot(path=PICTURE, clip={"x": 62, "y": 162, "width": 1490, "height": 640})
        page.set_viewport_size({"width": PICTURE_SIZE, "height": PICTURE_SIZE})
        for file in sorted(WORKFLOWS.glob("*.json")):
            page.set_content(draw(json.loads(file.read_text("utf-8")), file.stem.replace("_", " ")))
            page.screenshot(path=file.with_suffix(".jpg"), type="jpeg", quality=85)


def draw(workflow: dict, title: str) -> str:
    """An SVG page: the workflow's nodes as boxes where they stand, its wires, its title."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    left, top = (min(node["pos"][axis] for node in nodes.values()) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes.values()) for axis in (0, 1))
    # Wide graphs are squeezed sideways: the picture is square, and only the shape matters.
    scale_x, scale_y = 440 / (right - left), min(0.42, 300 / (bottom - top))

    def place(node: dict, x: float, y: float) -> tuple[float, float]:
        return 36 + (node["pos"][0] - left + x) * scale_x, 40 + (node["pos"][1] - top + y) * scale_y

    boxes, wires = [], []
    for node in nodes.values():
        x, y = place(node, 0, 0)
        width, height = node["size"][0] * scale_x, node["size"][1] * scale_y
        fill = "#3d6b8f" if "Dasheng" in node["type"] else "#4a4a52"
        boxes.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="7" fill="{fill}"/>')
    for _, source, source_slot, target, target_slot, kind in workflow["links"]:
        x1, y1 = place(nodes[source], nodes[source]["size"][0], 14 + 20 * source_slot)
        x2, y2 = place(nodes[target], 0, 14 + 20 * min(target_slot, 4))
        bend = max(24.0, abs(x2 - x1) / 2)
        path = f"M{x1:.0f} {y1:.0f} C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
        wires.append(f'<path d="{path}" stroke="{WIRES.get(kind, "#9aa5b1")}" stroke-width="3" fill="none"/>')
    words = title.split()
    half = (len(words) + 1) // 2
    lines = [" ".join(words[:half]), " ".join(words[half:])]
    text = "".join(f'<text x="36" y="{412 + 52 * i}">{line}</text>' for i, line in enumerate(lines))
    return f"""<body style="margin:0"><svg width="{PICTURE_SIZE}" height="{PICTURE_SIZE}" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100%" fill="#1d2127"/>{"".join(boxes)}{"".join(wires)}
<g fill="#f2f4f7" font-family="sans-serif" font-size="46" font-weight="600">{text}</g></svg></body>"""


if __name__ == "__main__":
    main()
