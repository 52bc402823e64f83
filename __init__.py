"""Dasheng-AudioGen for ComfyUI. ComfyUI imports this file; nothing else is imported before it asks for the nodes."""

# Holds docs/<node id>.md, the pages of ComfyUI's node help.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import DashengExtension

    return DashengExtension()
