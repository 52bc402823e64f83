"""What the pack says of how it is installed, in a real ComfyUI."""

import os
import sys
from pathlib import Path

from tools.comfyui import ROOT, Server, link_folder


def test_two_copies_and_a_dot_in_the_name_are_said_once(server, tmp_path):
    (tmp_path / "custom_nodes").mkdir()
    # A copy, not a link: a link's own folder is the one that it points to.
    copy = tmp_path / "custom_nodes" / "dasheng-audiogen-1.0"
    copy.mkdir()
    for part in ("__init__.py", "nodes", "dasheng_core"):
        link_folder(copy / part, ROOT / part)
    with Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), tmp_path) as twice:
        said = twice.log.read_text("utf-8", "replace")
    complaints = "is installed twice, in ", "has a dot in its name"
    assert [said.count(complaint) for complaint in complaints] == [1, 1]
    assert copy.name in said.split("is installed twice")[1].splitlines()[0]
    assert not [complaint for complaint in complaints if complaint in server.log.read_text("utf-8", "replace")]
