"""The nodes, one file per concern, in the order a scene passes through them."""

import logging
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

import nodes as comfyui_nodes

from ..dasheng_core.quoting import plain
from .audio import DashengDecode, DashengEncode
from .emphasis import DashengEmphasis
from .finish import DashengConvert, DashengFinish, DashengMix
from .guider import DashengGuider
from .hits import DashengHits
from .latent import EmptyDashengLatentAudio
from .listen import DashengListen
from .loaders import DashengAudioTokenizerLoader, DashengModelLoader, DashengTextEncoderLoader
from .loop import DashengLoop
from .mask_time import DashengExtend, DashengMaskTime
from .node_text import reporting, show_warnings
from .noise import DashengNoise
from .optimize import DashengOptimize
from .pick_take import DashengPickTake
from .place import DashengPlace
from .sampling import DashengSampler, DashengSwaySigmas
from .save_wav import DashengSaveWAV
from .script import DashengScript
from .spectrogram import DashengSpectrogram
from .stems import DashengStems
from .stereo import DashengPlaceInStereo
from .takes import DashengTakes
from .text import DashengScenePrompt, DashengTextEncode
from .timeline import DashengTimeline
from .variations import DashengVariations

NODES = (
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
    DashengTakes,
    DashengPickTake,
    DashengVariations,
    DashengConvert,
    DashengFinish,
    DashengMix,
    DashengSaveWAV,
    DashengSpectrogram,
    DashengTimeline,
    DashengEmphasis,
    DashengMaskTime,
    DashengExtend,
    DashengNoise,
    DashengLoop,
    DashengGuider,
    DashengListen,
    DashengStems,
    DashengPlaceInStereo,
    DashengHits,
    DashengPlace,
    DashengScript,
)
for node in NODES:
    # The app shows its warnings, and of whatever it refuses the sentence alone.
    node.execute = classmethod(reporting(node.execute.__func__))
FOLDER = Path(__file__).parent.parent.name


class DashengExtension(ComfyExtension):
    def _warn(self) -> None:
        """Say what ComfyUI itself passes over in silence."""
        if other := comfyui_nodes.NODE_CLASS_MAPPINGS.get(DashengSampler.GET_SCHEMA().node_id):
            other_folder = plain(other.RELATIVE_PYTHON_MODULE.removeprefix("custom_nodes."))
            logging.warning(
                f"Dasheng AudioGen is installed twice, in {other_folder} and in {plain(FOLDER)}. Remove one of the two folders "
                "from custom_nodes, and restart: every template shows twice, and only the nodes of one folder are used."
            )
        if "." in FOLDER:
            logging.warning(
                f"ComfyUI does not show the help pages of nodes whose folder has a dot in its name: rename {plain(FOLDER)}, "
                "for example to dasheng-audiogen, and restart."
            )

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        self._warn()
        show_warnings()
        return list(NODES)
