"""Dasheng-AudioGen for ComfyUI. ComfyUI imports this file; nothing else is imported before it asks for the nodes."""


async def comfy_entrypoint():
    from .nodes import DashengExtension

    return DashengExtension()
