"""What the pack says of how it is installed, in a real ComfyUI."""

import os
import sys
from pathlib import Path

import pytest

from tools.comfyui import ROOT, Server, link_folder


@pytest.mark.parametrize("name", ["a_second_copy", "dasheng-audiogen-1.0"])
def test_two_copies_and_a_dot_in_the_name_are_said_once(tmp_path, name):
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    (tmp_path / "custom_nodes").mkdir()
    # A copy, not a link: a link's own folder is the one that it points to.
    copy = tmp_path / "custom_nodes" / name
    copy.mkdir()
    for part in ("__init__.py", "nodes", "dasheng_core"):
        link_folder(copy / part, ROOT / part)
    with Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), tmp_path) as server:
        said = server.log.read_text("utf-8", "replace")
    assert said.count("is installed twice, in ") == 1
    assert name in said.split("is installed twice")[1].splitlines()[0]
    assert said.count("has a dot in its name") == ("." in name)
