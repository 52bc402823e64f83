"""ComfyUI in this process, for scripts that a test runs in one of their own. Read ``sys.argv`` before importing this."""

import asyncio
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import nodes  # noqa: E402


def load_pack() -> dict:
    """The pack's nodes by their ids, among ComfyUI's own."""
    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        sys.exit("ComfyUI did not load the pack.")
    return nodes.NODE_CLASS_MAPPINGS


def module_of(node):
    return sys.modules[node.__module__]
