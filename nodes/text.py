"""Scene prompt -> STRING, STRING -> CONDITIONING and the model's estimate of the clip's length."""

from comfy_api.latest import io

from ..dasheng_core.inputs import as_text
from ..dasheng_core.prompt import NO_CAPTION, compose_prompt
from .comfy.clip import DashengTextModel, check_written
from .common import ASPECT_LABELS, HIDDEN, SOUND
from .inputs import check_kind
from .node_text import said
from .versions import schema


class DashengScenePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def aspect(name, example, tooltip, default="", dynamic=True):
            label = ASPECT_LABELS[name]
            return io.String.Input(
                name,
                display_name=label,
                multiline=True,
                default=default,
                placeholder=f"{label}: {example}",
                # The app makes one of {rain|hail}; spoken words are left as they are written.
                dynamic_prompts=dynamic,
                tooltip=tooltip,
            )

        return schema(
            node_id="DashengScenePrompt",
            display_name="Dasheng Scene Prompt",
            description="Describe the sound here: the whole scene, who speaks which words, effects, music, ambience. "
            "Leave what the scene does not have empty.",
            search_aliases=SOUND,
            inputs=[
                aspect(
                    "caption",
                    "rain falls on a tin roof while a woman speaks softly",
                    "What the whole scene sounds like, in one English sentence. Required.",
                    default="Rain falls on a tin roof while a woman speaks softly.",
                ),
                aspect(
                    "speech",
                    "a young woman, calm and slow",
                    "Who speaks, and how, in English: voice, age, mood, pace.",
                ),
                aspect(
                    "asr",
                    "We should go inside.",
                    "The words spoken, in their own language (the multilingual model reads more than English).",
                    dynamic=False,
                ),
                aspect("sfx", "a door creaks open", "Sound effects, in English."),
                aspect("music", "slow piano, sad", "Music, in English: instruments, tempo, mood."),
                aspect(
                    "env",
                    "indoors, close microphone, quiet room",
                    "Ambience and recording quality, in English.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The tagged prompt, for Dasheng Text Encode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, caption):
        # None comes from another node, which has not run.
        return caption is None or bool(caption.strip()) or NO_CAPTION

    @classmethod
    def execute(cls, caption, speech, asr, sfx, music, env) -> io.NodeOutput:
        given = dict(caption=caption, speech=speech, asr=asr, sfx=sfx, music=music, env=env)
        aspects = {name: as_text("" if text is None else text, name) for name, text in given.items()}
        return io.NodeOutput(compose_prompt(**aspects))


def prompt_inputs(more: str):
    return [
        io.Clip.Input("clip", tooltip="From Load Dasheng Text Encoder."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="<|caption|> ",
            tooltip=f"A tagged prompt, written here or by Dasheng Scene Prompt. {more}",
        ),
    ]


def conditioning_outputs(use: str):
    return [
        io.Conditioning.Output(tooltip=use),
        io.Float.Output(display_name="seconds", tooltip="The model's own estimate of the clip's length."),
    ]


class DashengTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengTextEncode",
            display_name="Dasheng Text Encode",
            search_aliases=["prompt", "conditioning", "clip text encode"],
            description="Reads the prompt for the sampler, and estimates how long the clip should be.",
            inputs=prompt_inputs("Brackets are text, not weights."),
            outputs=conditioning_outputs("For positive or negative of a sampler."),
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, clip, prompt) -> io.NodeOutput:
        check_written(as_text(prompt, "prompt"), cls.hidden)
        conditioning = encode(clip, prompt)
        seconds = conditioning[0][1]["seconds"]
        return io.NodeOutput(conditioning, seconds, ui=said(f"{seconds:g} s estimated"))


def encode(clip, prompt: object) -> list:
    """The CONDITIONING of a tagged prompt. Raises ValueError for a CLIP of another model, or without a caption."""
    expected = "the text encoder of Dasheng-AudioGen: connect Load Dasheng Text Encoder"
    check_kind(getattr(clip, "cond_stage_model", clip), DashengTextModel, "clip", expected)
    return clip.encode_from_tokens_scheduled(clip.tokenize(as_text(prompt, "prompt")))
