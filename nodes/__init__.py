"""The nodes, one file per concern, in the order a scene passes through them."""

from comfy_api.latest import ComfyExtension, io

from .audio import DashengDecode, DashengEncode
from .latent import EmptyDashengLatentAudio
from .loaders import DashengAudioTokenizerLoader, DashengModelLoader, DashengTextEncoderLoader
from .optimize import DashengOptimize
from .sampling import DashengSampler, DashengSwaySigmas
from .skip_cache import DashengSkipCache
from .text import DashengScenePrompt, DashengTextEncode


class DashengExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            DashengModelLoader,
            DashengTextEncoderLoader,
            DashengAudioTokenizerLoader,
            DashengScenePrompt,
            DashengTextEncode,
            EmptyDashengLatentAudio,
            DashengSwaySigmas,
            DashengSampler,
            DashengDecode,
            DashengEncode,
            DashengOptimize,
            DashengSkipCache,
        ]
