"""Scene prompt -> STRING, STRING -> CONDITIONING and the model's estimate of the clip's length."""

from comfy_api.latest import io

from ..dasheng_core.inputs import as_text, check_kind
from ..dasheng_core.prompt import compose_prompt
from .clip import DashengTextModel
from .loaders import CATEGORY


class DashengScenePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def aspect(name, tooltip, default=""):
            return io.String.Input(name, multiline=True, default=default, tooltip=tooltip)

        return io.Schema(
            node_id="DashengScenePrompt",
            display_name="Dasheng Scene Prompt",
            category=CATEGORY,
            description="Writes the tagged prompt of a scene. Leave what the scene does not have empty.",
            inputs=[
                aspect(
                    "caption",
                    "What the whole scene sounds like, in one English sentence. Required.",
                    default="Rain falls on a tin roof while a woman speaks softly.",
                ),
                aspect("speech", "Who speaks, and how, in English: voice, age, mood, pace."),
                aspect(
                    "asr", "The words spoken, in their own language (the multilingual model reads more than English)."
                ),
                aspect("sfx", "Sound effects, in English."),
                aspect("music", "Music, in English: instruments, tempo, mood."),
                aspect("env", "Ambience and recording quality, in English."),
            ],
            outputs=[io.String.Output(display_name="prompt")],
        )

    @classmethod
    def execute(cls, caption, speech, asr, sfx, music, env) -> io.NodeOutput:
        aspects = dict(caption=caption, speech=speech, asr=asr, sfx=sfx, music=music, env=env)
        return io.NodeOutput(
            compose_prompt(**{name: as_text("" if text is None else text, name) for name, text in aspects.items()})
        )


class DashengTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DashengTextEncode",
            display_name="Dasheng Text Encode",
            category=CATEGORY,
            description="Encodes a tagged prompt, and estimates how long the clip should be.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Dasheng Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="<|caption|> ",
                    tooltip="A tagged prompt, written here or by Dasheng Scene Prompt. Brackets are text, not weights.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(),
                io.Float.Output(display_name="seconds", tooltip="The model's own estimate of the clip's length."),
            ],
        )

    @classmethod
    def execute(cls, clip, prompt) -> io.NodeOutput:
        expected = "the text encoder of Dasheng-AudioGen: connect Load Dasheng Text Encoder"
        check_kind(getattr(clip, "cond_stage_model", clip), DashengTextModel, "clip", expected)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(as_text(prompt, "prompt")))
        return io.NodeOutput(conditioning, conditioning[0][1]["seconds"])
