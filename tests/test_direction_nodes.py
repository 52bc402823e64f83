"""The nodes of direction in a real ComfyUI server: with ComfyUI's samplers and ours, each against the library."""

import json
import math

import pytest
import torch
from PIL import Image

from by_hand import CAT, FRAMES, GUIDANCE, SECONDS, SEED, STEPS, STORM, Scene, close, latents
from conftest import deviation
from dasheng_core import Timeline
from dasheng_core.control.keep import kept_of
from dasheng_core.control.listening import Part, listen, part_masks, prompt_parts
from dasheng_core.control.timeline import Span, timeline_context, timeline_mask
from dasheng_core.sampling import draw_noise
from graphs import complete, refusal, run

# ---- spans that are kept


def test_a_marked_span_is_made_again_and_the_rest_stays(server, library):
    scene, feather = Scene(), 0.2
    start = scene.ours(scene.storm, seed=3)
    marked = scene.mask(start, start=0.4, end=0.8, feather=feather)
    to_the_end = scene.ksampler(latent=scene.mask(start, start=0.4), sampler_name="dpmpp_2m")
    start, *filled, to_the_end = latents(server, scene, start, *scene.every_sampler(latent=marked), to_the_end)
    expected = library(
        CAT, kept=kept_of(start, [(0.0, 0.4 - feather), (0.8 + feather, SECONDS)], feather, *start.shape[:2])
    )
    for latent in filled:
        close(latent, expected)
        assert (latent - start)[..., :5].abs().max() <= 1e-6 and (latent - start)[..., 25:].abs().max() <= 1e-6
    changed = (to_the_end - start).abs().amax(dim=(0, 1))
    assert changed[:10].max() <= 1e-6 < changed[10:].min()


def test_marks_add_up_and_fall_off(server):
    scene = Scene()
    first = scene.mask(scene.empty(), start=0.0, end=0.2)
    for latent in (
        scene.mask(first, start=1.0),
        scene.mask(first, start=1.0, add=True),
        scene.mask(scene.empty(), start=0.4, end=0.8, feather=0.2),
        scene.add("DashengExtend", latent=scene.empty(), before=0.2, after=0.4),
    ):
        scene.add("ProbeLatent", latent=latent)
    alone, added, feathered, longer = (json.loads(text)[2] for text in complete(server, scene).texts())
    assert alone == [0.0] * 25 + [1.0] * 5
    assert added == [1.0] * 5 + [0.0] * 20 + [1.0] * 5
    assert feathered[5:11] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]) and feathered[:5] == [0.0] * 5
    assert longer == [1.0] * 5 + [0.0] * 30 + [1.0] * 10


def test_a_longer_clip_keeps_what_was_there(server):
    scene = Scene()
    start = scene.ours(scene.storm, seed=3)
    longer = scene.add("DashengExtend", latent=start, before=0.4, after=0.8)
    start, *made = latents(server, scene, start, *scene.every_sampler(latent=longer), scene.ksampler(latent=longer))
    for latent in made:
        assert latent.shape[-1] == FRAMES + 30
        assert (latent[..., 10 : 10 + FRAMES] - start).abs().max() <= 1e-6
        assert latent[..., :10].abs().mean() > 0.1 and latent[..., -20:].abs().mean() > 0.1


def test_an_empty_latent_is_as_long_as_another_sound_or_latent_and_some_more(server):
    scene = Scene()
    other = scene.empty()
    sound = scene.add("EmptyAudio", duration=2.0, sample_rate=44100, channels=2)
    longer = scene.empty(extend=0.4)
    scene.save(
        scene.empty(seconds=9.0, like_latent=other), scene.empty(seconds=9.0, like_audio=sound, extend=0.4), longer
    )
    result = complete(server, scene)
    assert [latent.shape[-1] for latent in result.latents()] == [FRAMES, 60, 40] and result.said(longer) == ["1.6 s"]
    scene.save(scene.empty(like_latent=other, like_audio=sound))
    assert "are connected, expected one" in refusal(server, scene)


# ---- noise and loop


def test_steady_noise_is_the_librarys_in_both_samplers(server, library):
    scene = Scene()
    unnamed = scene.ours()
    del scene.nodes[unnamed()[0]]["inputs"]["noise"]
    batch, before = scene.empty(batch_size=3), scene.add("DashengNoise", seed=SEED - 1)
    made = [unnamed, scene.ours(latent=batch, noise="steady", seed=SEED - 1)]
    made += [scene.advanced(scene.cfg_guider(), batch, before), scene.ours(noise="as KSampler")]
    unnamed, ours, core, as_ksampler = latents(server, scene, *made)
    expected = library(CAT, kind="steady")
    for latent in (unnamed, ours[1:2], core[1:2]):
        close(latent, expected)
    close(as_ksampler, library(CAT))
    assert deviation(expected, as_ksampler) > 0.01


def test_a_loop_is_the_librarys_under_every_sampler(server, library):
    """Take i of a batch is turned as seed + i says, also where it is taken out of the batch.

    Of two equal conditionings DualCFGGuider makes plain guidance; PerpNegGuider evaluates a third branch for nothing.
    """
    scene = Scene()
    model, negative = scene.add("DashengLoop", model=scene.model), scene.zero(scene.cat)
    second = scene.add("LatentFromBatch", samples=scene.empty(batch_size=2), batch_index=1, length=1)
    made = [
        scene.advanced(scene.cfg_guider(model=model)),
        scene.advanced(scene.guider(model=scene.add("DashengLoop", model=model))),
        scene.ours(model=model, latent=second, seed=SEED - 1),
        scene.advanced(dual(scene, scene.cat, negative, model, cfg_conds=GUIDANCE, cfg_cond2_negative=1.0)),
        scene.advanced(perp(scene, negative, model)),
    ]
    expected = library(CAT, loop=True)
    for latent in latents(server, scene, *made):
        close(latent, expected)
    assert deviation(expected, library(CAT)) > 0.01


def dual(scene, first, second, model=None, **scales):
    options = dict(cfg_conds=2.0, cfg_cond2_negative=2.0, style="regular", model=model or scene.model)
    return scene.add(
        "DualCFGGuider", cond1=first, cond2=second, negative=scene.zero(scene.cat), **{**options, **scales}
    )


def perp(scene, negative, model=None, neg_scale=1.0, positive=None):
    positive = positive or scene.cat
    prompts = dict(positive=positive, negative=negative, empty_conditioning=scene.zero(positive))
    return scene.add("PerpNegGuider", model=model or scene.model, cfg=GUIDANCE, neg_scale=neg_scale, **prompts)


def test_a_looped_sound_is_periodic(server, tiny):
    scene = Scene()
    latent = scene.ours()
    for loop in (True, False):
        scene.add("ProbeAudio", audio=scene.add("DashengDecode", vae=scene.vae, latent=latent, loop=loop))
    result = complete(server, scene.save(latent))
    (latent,) = result.latents()
    looped, plain = (torch.tensor(json.loads(text)[3]) for text in result.texts())
    close(looped, tiny.decode(latent, loop=True)[0, ::64])
    close(plain, tiny.decode(latent)[0, ::64])


# ---- timeline


SPANS = {
    "a span within": ([Span(), Span(0.4, 0.8, 0.1)], dict(start=0.4, end=0.8, fade=0.1)),
    "both": ([Span(), Span(0.4, 0.8, 0.0, False)], dict(start=0.4, end=0.8, overlap="both")),
    "uncovered": ([Span(0.0, 0.4), Span(0.8, math.inf)], dict(start=0.8)),
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_overlap_or_leave_frames_without_a_prompt(server, library, name):
    spans, widgets = SPANS[name]
    scene = Scene()
    base = scene.timeline(scene.cat, end=0.4) if name == "uncovered" else scene.cat
    made = scene.every_sampler(scene.timeline(scene.storm, base, **widgets))
    contexts = [library.contexts(text)[0] for text in (CAT, STORM)]
    mask = timeline_mask(spans, [context.shape[1] for context in contexts], FRAMES)[None]
    expected = library((timeline_context(contexts), mask))
    for latent in latents(server, scene, *made):
        close(latent, expected)


def rows(server) -> list[int]:
    return server.get("/probe/evaluations")


def test_a_timeline_is_one_branch_beside_a_negative_of_any_length(server, library):
    """With its own zeros one batch; with others two. Where they have four times its tokens, ComfyUI repeats those."""
    texts = once, twice, long = [f"<|caption|>{' A cat.' * times}" for times in (1, 2, 34)]
    tokens = [library.contexts(text)[0].shape[1] for text in texts]
    assert tokens[2] == 4 * (1 + tokens[0] + tokens[1])
    expected = library(Timeline([(0.0, once), (0.6, twice)], fade=0.0))
    for negative, evaluated in ((None, [2]), (STORM, [1, 1]), (long, [2])):
        scene = Scene()
        model = scene.add("ProbeEvaluations", model=scene.model)
        positive = scene.timeline(scene.encode(scene.clip, twice), scene.encode(scene.clip, once), start=0.6)
        negative = scene.zero(scene.encode(scene.clip, negative)) if negative else None
        rows(server)
        (made,) = latents(server, scene, scene.advanced(scene.cfg_guider(positive, negative, model)))
        assert rows(server) == evaluated * STEPS
        close(made, expected)


# ---- faders


def test_faders_are_alike_under_every_guider_of_comfyui(server):
    """And under KSampler, with its own schedule; without guidance they are added to positive alone."""
    scene = Scene()
    scene.sigmas = scene.add("BasicScheduler", model=scene.model, scheduler="simple", steps=STEPS, denoise=1.0)
    faded = scene.emphasis(sfx=1.5)
    basic = scene.add("BasicGuider", model=scene.model, conditioning=faded)
    made = [scene.advanced(scene.guider(faded)), scene.ksampler(faded), scene.custom(faded)]
    made += [scene.advanced(scene.cfg_guider(faded)), scene.advanced(perp(scene, scene.zero(faded), positive=faded))]
    made += [scene.advanced(scene.guider(faded, guidance=1.0)), scene.advanced(basic), scene.ksampler(faded, cfg=1.0)]
    first, *guided, alone, basic, unguided, plain = latents(server, scene, *made, scene.ksampler())
    for latent in guided:
        close(latent, first)
    close(basic, alone)
    close(unguided, alone)
    assert deviation(first, plain) > 0.01 < deviation(first, alone)


def test_faders_cost_a_branch_each_and_at_zero_nothing(server):
    scene = Scene()
    model = scene.add("ProbeEvaluations", model=scene.model)
    rows(server)
    still = latents(server, scene, scene.ours(scene.emphasis(), model=model), scene.ours(model=model))
    assert torch.equal(*still) and rows(server) == [2] * STEPS * 2
    complete(server, scene.save(scene.ours(scene.emphasis(sfx=-1.0), model=model)))
    assert rows(server) == [2, 1] * STEPS


def test_a_fader_says_at_its_node_that_the_caption_has_its_words(server):
    scene = Scene()
    # A prompt of no other test: what ComfyUI remembers does not run again, and shows nothing.
    prompt = CAT.replace("softly", "very softly")
    doubtful, still = scene.emphasis(prompt, sfx=0.5), scene.emphasis(prompt)
    shown = complete(server, scene.show(doubtful(1), still(1)))
    warning, estimate = shown.said(doubtful)
    assert "3 of 3 words of sfx" in warning and "soft, cat, meow" in warning
    assert estimate.endswith("1 faders moved") and "caption" not in shown.said(still)[-1]


def test_faders_of_a_timeline_act_on_their_span(server, library):
    scene = Scene()
    positive = scene.timeline(scene.emphasis(STORM, env=2.0), scene.emphasis(sfx=2.0), start=0.6)
    whole = Timeline([(0.0, CAT), (0.6, STORM)], fade=0.0)
    others = [
        Timeline([(0.0, CAT.partition(" <|sfx|>")[0]), (0.6, STORM)], fade=0.0),
        Timeline([(0.0, CAT), (0.6, STORM.partition(" <|env|>")[0])], fade=0.0),
    ]
    first = (torch.arange(FRAMES) < 15).float()
    expected = library(whole, list(zip((2 * first, 2 * (1 - first)), others, strict=True)))
    for latent in latents(server, scene, *scene.every_sampler(positive)):
        close(latent, expected)


# ---- guidance; its other forms stand in the table of all pairs


def test_the_guider_of_direction(server, library):
    """With all off it is ComfyUI's; a call remembers nothing of the one before; without guidance no form changes it."""
    scene = Scene()
    remembers = scene.guider(apg=True, apg_momentum=-0.5)
    before = scene.advanced(remembers, noise=scene.add("RandomNoise", noise_seed=SEED + 1))
    unguided = [scene.guider(guidance=1.0, **forms) for forms in ({}, dict(zero_star=True), dict(apg=True))]
    # Less than the widget takes, from a wire.
    unguided.append(scene.guider(guidance=scene.value("0")))
    guiders = [scene.guider(), scene.cfg_guider(), scene.guider(apg=True, apg_parallel=0.4), *unguided]
    # From sigma 1 on nothing is left of a latent.
    made = [scene.advanced(remembers, latent=before), *map(scene.advanced, guiders)]
    second, ours, core, parallel, *unguided = latents(server, scene, *made)
    close(second, library(CAT, apg=(0.0, 0.0, -0.5)))
    close(parallel, library(CAT, apg=(0.4, 0.0, 0.0)))
    assert torch.equal(ours, core)
    assert all(torch.equal(other, unguided[0]) for other in unguided)


def test_guidance_nodes_of_comfyui(server, library):
    """What docs/graph.md says of them."""
    scene = Scene()
    slg = dict(double_layers="0", single_layers="0", scale=3.0, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0)
    models = [
        scene.model,
        scene.add("CFGZeroStar", model=scene.model),
        scene.add("APG", model=scene.model, eta=0.0, norm_threshold=0.0, momentum=0.0),
        scene.add("SkipLayerGuidanceDiT", model=scene.model, **slg),
    ]
    guiders = [scene.cfg_guider(model=model) for model in models]
    guiders += [perp(scene, scene.storm, neg_scale=scale) for scale in (0.0, 1.0)]
    plain, zero_star, apg, skipped, perp_off, perp_on = latents(server, scene, *map(scene.advanced, guiders))
    # ComfyUI scales the sound of the negative branch, where the paper scales its velocity.
    assert deviation(zero_star, plain) > 0.01 < deviation(zero_star, library(CAT, zero_star=True))
    close(apg, library(CAT, scale=GUIDANCE + 1, apg=(0.0, 0.0, 0.0)))
    # Our blocks are not those that it skips.
    close(skipped, plain, 1e-5)
    close(perp_off, plain)
    assert deviation(perp_on, plain) > 0.01
    scene = Scene()
    result = run(server, scene.save(scene.ours(model=scene.add("RescaleCFG", model=scene.model, multiplier=0.7))))
    if result.events[-1][0] == "execution_success":
        # Newer versions of it take latents without height.
        assert deviation(result.latents()[0], plain) > 0.01
    else:
        assert "Dimension out of range" in result.error()


# ---- listening


def test_listening_is_the_librarys(server, tiny):
    """Two prompts of a timeline, side by side; and the aspects of one prompt."""
    scene = Scene()
    latent, both = scene.ours(), scene.timeline(scene.storm, scene.cat, start=0.6)
    audio = scene.add("DashengDecode", vae=scene.vae, latent=latent)
    for conditioning, more in ((both, {"audio": audio}), (scene.cat, {})):
        heard = listened(scene, conditioning, latent, **more)
        scene.add("SaveImage", images=heard, filename_prefix="test")
    result = complete(server, scene.save(latent))
    (latent,) = result.latents()
    contexts = [tiny.encode_text([text])[0] for text in (CAT, STORM)]
    starts = [0, contexts[0].shape[1], contexts[0].shape[1] + contexts[1].shape[1]]
    spans = [Part("0 to the end", *starts[:2]), Part("0.6 to the end", *starts[1:])]
    aspects = prompt_parts(tiny.tokenizer.file.encode, CAT)
    for text, context, parts in zip(
        result.texts(), (torch.cat(contexts, dim=1), contexts[0]), (spans, aspects), strict=True
    ):
        with torch.inference_mode():
            condition = tiny.backbone.condition(context, tiny.backbone.dummy_ta_embed[None, None])
        noise = draw_noise(0, *latent.shape[1:])[None]
        (curves,) = listen(tiny.backbone, latent, noise, condition, part_masks(parts, context.shape[1]))
        expected = []
        for part, curve in zip(parts, curves, strict=True):
            share = curve.cumsum(0) / curve.sum()
            times = [(share < bound).sum().item() / 25 for bound in (0.1, 0.9)]
            where = f"{times[0]:.1f} to {times[1]:.1f} s" if curve.any() else "nowhere"
            expected.append(f"take 1, {part.name}: {where}")
        assert text == "\n".join(expected)
    heights = [Image.open(path).size[1] for path in result.files("images")]
    assert heights == [320 + 2 * 56, 2 * 56]


def listened(scene, conditioning, latent=None, words=False, **more):
    inputs = dict(model=scene.model, conditioning=conditioning, latent=latent or scene.ours(), words=words)
    heard = scene.add("DashengListen", **inputs, **more)
    scene.show(heard(1))
    return heard


def test_what_is_heard_is_plain_text(server):
    scene = Scene()
    listened(scene, scene.encode(scene.clip, "<|caption|> A cat. <|asr|> a\u202eb " + "c" * 300), words=True)
    (text,) = complete(server, scene).texts()
    assert "asr: a\\u202eb: " in text and "\u202e" not in text and max(map(len, text.split("\n"))) < 200


# ---- refusals


def combined(scene, *conditionings):
    first, second = conditionings
    return scene.add("ConditioningCombine", conditioning_1=first, conditioning_2=second)


def with_cache(scene, cache, **options):
    return scene.ours(model=scene.add(cache, model=scene.add("DashengLoop", model=scene.model), **options))


# What the graph saves, and the remedy or the value that is named.
REFUSED = {
    "combine": (lambda s: s.ours(combined(s, s.cat, s.timeline(s.storm, start=0.6))), "Dasheng Timeline"),
    "concat": (
        lambda s: s.ours(s.add("ConditioningConcat", conditioning_to=s.timeline(s.cat), conditioning_from=s.storm)),
        "joined it with another conditioning",
    ),
    "beyond the clip": (lambda s: s.ours(s.timeline(s.storm, s.cat, start=2.0)), "2 s"),
    "a timeline in a timeline": (lambda s: s.ours(s.timeline(s.timeline(s.storm), s.cat)), "conditioning is a timeline"),
    "a mask beyond the clip": (lambda s: s.ours(latent=s.mask(s.empty(), start=1.0, end=1.6)), "1.6 s"),
    "too long": (lambda s: s.ours(latent=s.add("DashengExtend", latent=s.empty(), before=0.0, after=600.0)), "600"),
    "a fader of nothing": (lambda s: s.ours(s.emphasis(music=1.0)), "emphasis names music"),
    "a fader on negative": (lambda s: s.ours(negative=s.emphasis(sfx=1.0)), "Dasheng Emphasis to positive"),
    "a fader in a combination": (lambda s: s.ours(combined(s, s.cat, s.emphasis(sfx=1.0))), "Dasheng Timeline"),
    "a fader under another guider": (lambda s: s.advanced(dual(s, s.emphasis(sfx=1.0), s.cat)), "Guider_DualCFG"),
    "a fader between two": (lambda s: s.advanced(dual(s, s.cat, s.emphasis(sfx=1.0))), "Dasheng Emphasis to positive"),
    "a fader on an average": (
        lambda s: s.ours(s.add(
            "ConditioningAverage", conditioning_to=s.emphasis(sfx=1.0), conditioning_from=s.storm, conditioning_to_strength=0.5
        )),
        "Dasheng Emphasis are on another scene",
    ),
    "two guidances": (
        lambda s: s.advanced(s.guider(model=s.add("RescaleCFG", model=s.model, multiplier=0.7), apg=True)),
        "take one of them out",
    ),
    "a loop and another cache": (
        lambda s: with_cache(s, "EasyCache", reuse_threshold=0.1, start_percent=0.0, end_percent=1.0, verbose=False),
        "take one of the two out",
    ),
    "a loop beside guidance": (lambda s: with_cache(s, "PerturbedAttentionGuidance", scale=1.0), "beside guidance"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(server, name):
    build, sentence = REFUSED[name]
    scene = Scene()
    assert sentence in refusal(server, scene.save(build(scene)))


def test_listening_to_what_does_not_fit_is_refused(server):
    for conditioning, takes, said in (("cat", "takes", "audio has 4 takes"), ("both", None, "several entries")):
        scene = Scene()
        more = {"audio": scene.value(takes)} if takes else {}
        listened(scene, scene.cat if conditioning == "cat" else combined(scene, scene.cat, scene.storm), **more)
        assert said in run(server, scene).error()


def test_faders_that_were_never_evaluated_are_no_result(server):
    """No step of the schedule lies between these sigmas, which is known at its end."""
    scene = Scene()
    scene.save(scene.advanced(scene.guider(scene.emphasis(sfx=1.0), sigma_low=0.001, sigma_high=0.002)))
    assert "SceneGuider evaluates no faders" in run(server, scene).error()
