"""One graph with each of the pack's nodes in it, in API form; it is made to be opened, not to be run as a whole."""

from graphs import Graph

CAPTION = "<|caption|> Rain."
# What the first output of a bypassed node becomes: what stands at this input. Other nodes hand nothing on.
HANDED_ON = {
    "DashengOptimize": "model",
    "DashengLoop": "model",
    "DashengTimeline": "timeline",
    "EmptyDashengLatentAudio": "like_latent",
    "DashengMaskTime": "latent",
    "DashengExtend": "latent",
    "DashengSampler": "latent",
    "DashengTakes": "audio",
    "DashengPickTake": "audio",
    "DashengVariations": "audio",
    "DashengConvert": "audio",
    "DashengFinish": "audio",
    "DashengMix": "bed",
    "DashengStems": "audio",
    "DashengPlaceInStereo": "audio_1",
    "DashengPlace": "bed",
}
# Where nothing needs to stand: the chain goes on without. Dasheng Timeline itself refuses to have no conditioning, and no
# timeline where the one that was there is muted.
DOES_WITHOUT = {
    ("DashengTimeline", "timeline"),
    ("DashengTimeline", "conditioning"),
    ("DashengSampler", "negative"),
    ("DashengGuider", "negative"),
    ("DashengListen", "audio"),
    ("DashengSaveWAV", "timeline"),
    ("EmptyDashengLatentAudio", "like_latent"),
    ("EmptyDashengLatentAudio", "extend"),
    ("DashengPickTake", "transcript"),
    ("DashengExtend", "words"),
    # They refuse to have one alone.
    ("DashengExtend", "conditioning"),
    ("DashengExtend", "clip"),
    # They refuse to have no sound at all.
    ("DashengStems", "audio"),
    ("DashengPlaceInStereo", "audio_1"),
    ("DashengPlaceInStereo", "audio_2"),
}


def every_node(name: str) -> Graph:
    """The graph of a checkpoint ``name``, with four nodes of a kind at most."""
    graph = Graph()
    model, clip, vae = graph.loaders(name)
    recording = graph.add("LoadAudio", audio="recording.wav")
    model = graph.add("DashengOptimize", model=model, mode="off")
    model = graph.add("DashengLoop", model=model)

    names = ("speech", "asr", "sfx", "music", "env")
    aspects, faders = dict.fromkeys(names, ""), dict.fromkeys(names, 0.0)
    scene = graph.add("DashengScenePrompt", caption="Rain.", **aspects)
    text = graph.add("DashengTextEncode", clip=clip, prompt=CAPTION)
    graph.nodes[text()[0]]["inputs"]["prompt"] = scene()
    emphasis = graph.add("DashengEmphasis", clip=clip, prompt=f"{CAPTION} <|sfx|> Drops.", **{**faders, "sfx": 1.5})
    negative = graph.encode(clip, "<|caption|> Noise.")
    span = dict(start=0.0, end=1.0, fade=0.1, overlap="replace")
    timeline = graph.add("DashengTimeline", conditioning=text, **span)
    timeline = graph.add("DashengTimeline", conditioning=emphasis, timeline=timeline, **{**span, "start": 0.5})
    timeline = graph.add("DashengTimeline", conditioning=negative, timeline=timeline, **{**span, "start": 0.8})

    encoded = graph.add("DashengEncode", vae=vae, audio=recording)
    latent = graph.add(
        "EmptyDashengLatentAudio", seconds=text(1), batch_size=2, extend=emphasis(1), like_latent=encoded, fps=24.0
    )
    latent = graph.add("DashengMaskTime", latent=latent, start=0.0, end=1.0, feather=0.0, add=False)
    script = dict(script="0-0.4 env: rain\n0.2 sfx: bell", seconds=0.0, fade=0.1, speech_span=10.0)
    script = graph.add("DashengScript", clip=clip, **script)
    graph.add("PreviewImage", images=script(2))
    latent = graph.add(
        "DashengExtend", latent=latent, before=0.0, after=0.4, conditioning=script, clip=clip, words=scene
    )  # fmt: skip
    sampled = graph.sample(model, timeline, latent, negative=negative, noise="steady", steps=2)
    audio = graph.add("DashengDecode", vae=vae, latent=sampled, loop=False)
    takes = graph.add("DashengTakes", audio=audio)
    chosen = graph.add(
        "DashengVariations", audio=takes, vae=vae, count=2, least_distance=0.005, most_distance=0.5
    )  # fmt: skip
    picked = graph.add(
        "DashengPickTake", audio=chosen, pick="number", number=2, measure="loudness", min_peak=-60.0, min_crest=0.0,
        max_silence=1.0, max_clipped=-1, transcript=scene, max_offset=0.1,
    )  # fmt: skip
    converted = graph.add("DashengConvert", audio=picked, sample_rate="48000", channels="as it is", loop=False)
    finished = graph.add(
        "DashengFinish", audio=converted, trim=True, trim_below=-60.0, padding=0.05, fade_in=0.01, fade_out=0.05,
        level="loudness", target=-23.0, fps=24.0,
    )  # fmt: skip
    mixed = graph.add("DashengMix", bed=finished, layer=recording, at=0.0, layer_db=0.0)
    graph.add(
        "DashengSaveWAV", audio=mixed, filename_prefix="audio/dasheng", bit_depth="24 bit", loop=False, loop_start=0.0,
        loop_end=0.0, markers="", timeline=timeline, metadata="",
    )  # fmt: skip
    graph.add("PreviewImage", images=graph.add("DashengSpectrogram", audio=mixed, width=256, row_height=128))
    heard = graph.add(
        "DashengListen", model=model, conditioning=timeline, latent=sampled, words=False, audio=audio
    )  # fmt: skip
    graph.add("PreviewImage", images=heard)
    stems = graph.add(
        "DashengStems", model=model, clip=clip, vae=vae, conditioning=emphasis, seed=0, rest=False, retake=False, audio=audio
    )  # fmt: skip
    places = {f"{name}_{n}": 0.0 for n in range(1, 5) for name in ("pan", "distance", "gain")}
    placed = graph.add("DashengPlaceInStereo", audio_1=stems, **places, delay=0.0)
    graph.nodes[placed()[0]]["inputs"]["audio_2"] = stems(1)
    graph.add("PreviewAudio", audio=placed)
    video = graph.add("LoadVideo", file="video.mp4")
    hits = graph.add("DashengHits", sensitivity=0.5, least_distance=0.2, most=200, bounces=False, fps=24.0, video=video)
    struck = graph.add("DashengPlace", bed=mixed, effect=takes, hits="", effect_db=0.0)
    graph.nodes[struck()[0]]["inputs"]["hits"] = hits()
    graph.add("PreviewAudio", audio=struck)

    guider = graph.add(
        "DashengGuider", model=model, positive=timeline, guidance=5.0, rescale=0.0, sigma_low=0.0, sigma_high=1.0,
        zero_star=False, apg=False, apg_parallel=0.0, apg_limit=0.0, apg_momentum=-0.5, negative=negative,
    )  # fmt: skip
    custom = graph.add(
        "SamplerCustomAdvanced", noise=graph.add("DashengNoise", seed=picked(3)), guider=guider,
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("DashengSwaySigmas", steps=2, sway=-1.0, denoise=1.0, grid="full"), latent_image=latent,
    )  # fmt: skip
    graph.add("PreviewAudio", audio=graph.add("VAEDecodeAudio", samples=custom, vae=vae))
    return graph
