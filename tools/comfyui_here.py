"""ComfyUI in this process, for scripts that ``tools.comfyui.run_in_comfyui`` runs. Read ``sys.argv`` before importing this.

What stands behind ``--`` there are ComfyUI's own flags.
"""

import asyncio
import sys

import comfy.options

from tools.comfyui import ROOT

_flags = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
sys.argv = [sys.argv[0], "--cpu", *_flags]
comfy.options.enable_args_parsing()
# As main.py does: nodes puts the folder comfy, with a utils.py, in front of ComfyUI's own.
import utils.extra_config  # noqa: E402, F401

import nodes  # noqa: E402


def load_pack() -> dict:
    """The pack's nodes by their ids, among ComfyUI's own."""
    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        sys.exit("ComfyUI did not load the pack.")
    return nodes.NODE_CLASS_MAPPINGS


def module_of(node):
    return sys.modules[node.__module__]
