"""Direction: timelines, faders, kept stretches, loops, windows, kinds of guidance, listening."""

import itertools

import pytest
import torch

from conftest import deviation
from dasheng_core import Timeline, compose_prompt
from dasheng_core.backbone import Backbone
from dasheng_core.control import timeline as timelines
from dasheng_core.control.emphasis import lint_emphasis, without_aspect
from dasheng_core.control.keep import extend, time_mask
from dasheng_core.control.listening import listen, part_masks, prompt_parts
from dasheng_core.control.loop import loop_shift
from dasheng_core.control.timeline import Span, timeline_mask, timeline_weights
from dasheng_core.control.windows import window_starts
from dasheng_core.guidance import Guidance, guide
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas, make_timesteps
from mini.judges import ambience
from mini.levels import Sound

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow. <|env|> A quiet room."
STORM = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."
RAIN = compose_prompt(
    caption="The sound of rainfall for some six seconds.", env="All around, rain on the roof outdoors."
)
WIND = compose_prompt(
    caption="The wind blowing: a recording of six seconds.", env="As the ambience, the blowing of gusty wind."
)
BOTH = Timeline([(0.0, CAT), (0.4, STORM)], fade=0.08)
SECONDS, FRAMES, STEPS = 0.8, 20, 4
SHORT = dict(num_steps=STEPS, duration=SECONDS, seed=3)


@pytest.fixture
def rows(monkeypatch):
    """How many items and frames each evaluation had."""
    seen, step = [], Backbone.step
    monkeypatch.setattr(
        Backbone, "step", lambda self, x, *args: seen.append((len(x), x.shape[-1])) or step(self, x, *args)
    )
    return seen


@pytest.fixture
def latents(tiny, monkeypatch):
    """What generate() sampled, item by item."""
    seen, decode = [], tiny.decode
    monkeypatch.setattr(tiny, "decode", lambda latent, **options: seen.append(latent[0]) or decode(latent, **options))
    return seen


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KNOWN = random(1, 24, FRAMES, seed=5)


# Guidance


def test_rescaled_guidance_has_the_deviation_of_the_paper():
    """Each item by itself."""
    x, conditional, unconditional = random(3, 2, 8, 5)
    plain = guide(conditional, unconditional, 5.0)
    made = Guidance(SamplingOptions(guidance_rescale=0.7))(x, 0.5, conditional, unconditional)
    for item in range(2):
        factor = conditional[item].std() / plain[item].std()
        assert deviation(made[item], 0.7 * plain[item] * factor + 0.3 * plain[item]) < 1e-5
    whole = Guidance(SamplingOptions(guidance_rescale=1))(x, 0.5, conditional, unconditional)
    assert deviation(whole.std(dim=(1, 2)), conditional.std(dim=(1, 2))) < 1e-5


def test_zero_star_fits_the_unconditional_velocity_to_the_conditional_one():
    x, conditional, unconditional = random(3, 2, 8, 5)
    made = Guidance(SamplingOptions(zero_star=True))(x, 0.5, conditional, unconditional)
    for c, u, m in zip(conditional, unconditional, made, strict=True):
        s = (c * u).sum() / (u * u).sum()
        assert deviation(m, s * u + 5.0 * (c - s * u)) < 1e-5


@pytest.mark.parametrize("parallel, limit, momentum", [(1, 0, 0), (0, 0, 0), (0.5, 0.3, -0.5)])
def test_apg_is_the_algorithm_of_its_paper(parallel, limit, momentum):
    """Spelt out for sounds, x - sigma v, as the paper has it; two steps, for the momentum."""
    guidance, running = Guidance(SamplingOptions(apg=(parallel, limit, momentum))), [0.0, 0.0]
    for step, sigma in enumerate((0.9, 0.4)):
        x, conditional, unconditional = random(3, 2, 8, 5, seed=step)
        made = guidance(x, sigma, conditional, unconditional)
        for i in range(2):
            sound, other = x[i] - sigma * conditional[i], x[i] - sigma * unconditional[i]
            update = running[i] = (sound - other) + momentum * running[i]
            size = update.square().mean().sqrt()
            update = update * min(1, limit / size) if limit else update
            along = (update * sound).sum() / (sound * sound).sum() * sound
            expected = sound + 4.0 * ((update - along) + parallel * along)
            assert deviation(x[i] - sigma * made[i], expected) < 1e-5
            if (parallel, limit, momentum) == (1, 0, 0):
                assert deviation(made[i], guide(conditional[i], unconditional[i], 5.0)) < 1e-5


# Timeline


def test_weights_of_a_timeline():
    weights = timeline_weights(BOTH.spans, FRAMES)
    assert weights.shape == (FRAMES, 3) and torch.allclose(weights.sum(1), torch.ones(FRAMES))
    assert weights[:9, 1].eq(1).all() and weights[11:, 2].eq(1).all() and not weights[:, 0].any()
    assert torch.allclose(weights[9:11, 2], torch.tensor([0.25, 0.75])), "the middle of a frame counts"
    hard = timeline_weights(Timeline(BOTH.entries, fade=0).spans, FRAMES)
    assert hard[:10, 1].eq(1).all() and hard[10:, 2].eq(1).all()


def test_a_stretch_in_the_middle_replaces_what_was_so_far_or_is_read_beside_it():
    replaced = timeline_weights([Span(), Span(0.2, 0.4, 0.0)], FRAMES)
    assert replaced[5:10].eq(torch.tensor([0.0, 0.0, 1.0])).all()
    assert replaced[[4, 10]].eq(torch.tensor([0.0, 1.0, 0.0])).all()
    both = timeline_weights([Span(), Span(0.2, 0.4, 0.0, replace=False)], FRAMES)
    assert both[5:10].eq(torch.tensor([0.0, 1.0, 1.0])).all()
    alone = timeline_weights([Span(0.2, 0.4, 0.1)], FRAMES)
    assert alone[0, 0] == 1 and alone[7, 0] == 0 and 0 < alone[4, 0] < 1


@torch.inference_mode()
def test_a_frame_without_a_prompt_finds_what_the_unconditional_branch_finds(tiny):
    """The whole clip: then the velocity is that branch's."""
    content, _, _ = tiny.encode_text(CAT)
    context = timelines.timeline_context([content, content])
    mask = timeline_mask([Span(1.0, 1.2), Span(1.4)], [content.shape[1]] * 2, 50)[None, :FRAMES]
    embedding = tiny.backbone.dummy_ta_embed
    aligned = timelines.timeline_aligned(embedding, mask)
    assert aligned.shape == (1, FRAMES, len(embedding)) and not aligned.any()
    modulation, latent = tiny.backbone.modulation(torch.tensor([500])), random(1, 24, FRAMES)
    silence = tiny.backbone.condition(None, torch.zeros_like(embedding)[None, None])
    found = tiny.backbone.step(latent, modulation, [tiny.backbone.condition(context, aligned, mask[:, None])])
    assert deviation(found, tiny.backbone.step(latent, modulation, [silence])) < 1e-5


def test_a_timeline_of_one_prompt_is_that_prompt_and_takes_no_more_evaluations(tiny, rows):
    alone = tiny.generate(CAT, **SHORT)
    assert deviation(tiny.generate(Timeline([(0, CAT)]), **SHORT), alone) < 1e-4
    rows.clear()
    made = tiny.generate(BOTH, **SHORT)
    assert rows == [(2, FRAMES)] * STEPS and deviation(made, alone) > 1e-3
    late = tiny.generate(Timeline([(0.4, CAT)]), **SHORT)
    assert deviation(late, alone) > 1e-3 and deviation(late, made) > 1e-3


@torch.inference_mode()
def test_near_the_noise_a_stretch_is_what_it_would_be_as_a_clip_of_its_own(tiny):
    contexts = [tiny.encode_text(prompt)[0] for prompt in BOTH.prompts]
    mask = timeline_mask(Timeline(BOTH.entries, fade=0).spans, [c.shape[1] for c in contexts], FRAMES)[None]
    latent, aligned = random(1, 24, FRAMES), tiny.backbone.dummy_ta_embed[None, None]
    whole = tiny.backbone.condition(timelines.timeline_context(contexts), aligned, mask[:, None])
    whole = whole._replace(entries=timelines.timeline_entries(mask))
    for timestep, differ in ((800, False), (799, True)):
        modulation = tiny.backbone.modulation(torch.tensor([timestep]))
        found = tiny.backbone.step(latent, modulation, [whole.at_timestep(timestep)])
        for context, frames in zip(contexts, (slice(0, 10), slice(10, FRAMES)), strict=True):
            alone = tiny.backbone.step(latent[..., frames], modulation, [tiny.backbone.condition(context, aligned)])
            # The network ends with a convolution, which reads one frame of the neighbour.
            inside = slice(0, 9) if frames.start == 0 else slice(1, 10)
            off = deviation(found[..., frames][..., inside], alone[..., inside])
            assert off > 1e-3 if differ else off < 1e-5


def test_the_length_of_a_timeline_is_its_longest_estimate(tiny):
    longest = max(int(tiny.encode_text(prompt)[2]) for prompt in (CAT, STORM))
    for entries in ([(0, CAT), (0.04, STORM)], [(0, STORM), (0.04, CAT)]):
        assert tiny.generate(Timeline(entries), num_steps=1).shape[1] == 640 * longest


@pytest.mark.parametrize(
    "scenes, options, sentence",
    [
        ([], {}, "The timeline is an empty list, expected pairs"),
        ([CAT], {}, "expected pairs of a second and a prompt"),
        ([(1, CAT), (1, STORM)], {}, r"starts its entries at \[1.0, 1.0\] s, expected each after"),
        ([(-1, CAT)], {}, "The start of a span is -1"),
        ([(0, CAT), (1, "rain")], {}, r"starts with 'rain', expected <\|caption\|>"),
        ([(0, CAT), (0.9, STORM)], {}, "has the time 0.9 s, expected one inside the clip of 0.8 s"),
        (
            CAT,
            dict(emphasis={"music": 1}),
            "emphasis names music, which the prompt does not have: its aspects are caption, s",
        ),
        (CAT, dict(emphasis={"caption": 1}), "emphasis names 'caption', expected speech, asr, sfx, music, env"),
        (CAT, dict(emphasis={"sfx": "much"}), "The emphasis on sfx is 'much', expected a number from -100 to 100"),
        (CAT, dict(emphasis="sfx"), "emphasis is 'sfx', expected a dict"),
        (CAT, dict(guidance_rescale=2), "guidance_rescale is 2, expected a number from 0 to 1"),
        (CAT, dict(apg=(0, 0)), "apg has 2 numbers, expected 3"),
        (CAT, dict(apg=(0, 0, 3)), "The momentum of apg is 3"),
        (CAT, dict(window=0.01), "window is 0.01, expected a number from 0.08 to 600"),
        (CAT, dict(latent=KNOWN), "latent and keep belong together"),
        (CAT, dict(keep=[(0, 1)]), "latent and keep belong together"),
        (CAT, dict(feather=0.8), "feather is 0.8 and nothing is kept: give latent and keep"),
        (CAT, dict(latent=KNOWN, keep=[(0, 0.2)], feather=-1.0), "feather is -1.0, expected a number from 0 to 600"),
        (CAT, dict(latent=KNOWN, keep=[(0, 2.0)]), "has the time 2 s, expected one inside the clip of 0.8 s"),
        (CAT, dict(latent=KNOWN, keep=[(0.4, 0.2)]), "from 0.4 to 0.2 s, expected an end after its start"),
        (CAT, dict(latent=KNOWN, keep=[0.0, 1.0]), "keep has 0.0, expected pairs of seconds"),
        (CAT, dict(latent=KNOWN.expand(3, -1, -1), keep=[(0, 0.4)]), "latent has 3 items, expected 1"),
        (CAT, dict(latent=KNOWN[:, 1:], keep=[(0, 0.1)]), r"shape \[1, 23, 20\], expected \[batch, 24, frames\]"),
    ],
    ids=str,
)
def test_what_is_no_direction_is_refused_before_anything_is_made(tiny, rows, scenes, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.generate(scenes if isinstance(scenes, str) else [STORM, Timeline(scenes)], **SHORT, **options)
    assert not rows


def test_each_stretch_sounds_like_its_prompt(mini):
    sound = mini.generate(Timeline([(0.0, RAIN), (3.0, WIND)]), seed=1, duration=6.0)[0].numpy()
    assert [ambience(Sound(sound[:44800])), ambience(Sound(sound[51200:]))] == ["rain", "wind"]


# Emphasis


@torch.inference_mode()
def test_a_fader_adds_the_difference_that_its_aspect_makes(tiny, latents, rows):
    options = dict(guidance_scale=3.0, emphasis={"sfx": 2.0, "env": -1.0})
    tiny.generate(CAT, **SHORT, **options)
    assert rows == [(4, FRAMES)] * STEPS, "one branch more for each fader"
    contents = [tiny.encode_text(p)[0] for p in (CAT, without_aspect(CAT, "sfx"), without_aspect(CAT, "env"))]
    sigmas, x = make_sigmas(STEPS), draw_noise(3, 24, FRAMES)[None]
    aligned = tiny.backbone.dummy_ta_embed[None, None]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        c, s, e = (tiny.backbone(x, sigma * 1000, content, aligned) for content in contents)
        u = tiny.backbone(x, sigma * 1000, torch.zeros_like(contents[0]), torch.zeros_like(aligned))
        x = x + (following - sigma) * (u + 3.0 * (c - u) + 2.0 * (c - s) - 1.0 * (c - e))
    assert deviation(latents[0], x[0]) < 1e-4


def test_what_a_fader_leaves_out():
    assert without_aspect(CAT, "sfx") == CAT.replace(" <|sfx|> Soft cat meow.", "")
    assert without_aspect(BOTH, "sfx").prompts == [without_aspect(CAT, "sfx"), STORM]
    assert without_aspect(BOTH, "sfx").fade == BOTH.fade


@pytest.mark.parametrize(
    "caption, again",
    [
        ("Rain falls while a door knocks twice.", ["knocking", "twice"]),
        ("Heavy rain, and knocking.", ["knocking"]),
        ("A rainy day, and someone waits outside.", []),
        ("The Door then.", []),
    ],
)
def test_a_caption_that_says_half_of_a_moved_aspect_is_doubtful(caption, again):
    """Of "knocking" and "twice"; "then" and "the" say nothing, and rain is not what is moved."""
    prompt = compose_prompt(caption=caption, sfx="Then the knocking, twice.", env="Heavy rain.")
    said = lint_emphasis(prompt, ["sfx", "music"])
    assert [f"{len(again)} of 2 words of sfx too ({', '.join(again)})" in doubt for doubt in said] == [True] * bool(
        again
    )


# Keep


@pytest.mark.parametrize("options", [{}, dict(loop=True), dict(window=0.4), dict(emphasis={"sfx": 1.0})], ids=str)
def test_kept_frames_come_back_exactly_and_the_others_are_made(tiny, latents, options):
    known = random(1, 24, FRAMES, seed=5)
    tiny.generate(CAT, num_steps=STEPS, seed=3, latent=known, keep=[(0, 0.2), (0.6, 0.8)], **options)
    made = latents[0]
    kept = torch.arange(FRAMES).lt(5) | torch.arange(FRAMES).ge(15)
    assert torch.equal(made[:, kept], known[0][:, kept])
    assert (made[:, ~kept] - known[0][:, ~kept]).abs().mean() > 0.1


@torch.inference_mode()
def test_kept_frames_are_seen_noised_at_every_step(tiny):
    """As ComfyUI's samplers do with a mask: each evaluation sees (1 - sigma) of the latent and sigma of the noise."""
    known, noise, seen = random(1, 24, FRAMES, seed=5), random(1, 24, FRAMES, seed=6), []
    step = tiny.backbone.step
    tiny.backbone.step = lambda x, *args: seen.append(x[0]) or step(x, *args)
    try:
        content, mask, _ = tiny.encode_text(CAT)
        tiny.sample(content, mask, [FRAMES], STEPS, noise=noise, latent=known, keep=[(0.0, 0.4)])
    finally:
        del tiny.backbone.step
    for sigma, x in zip(make_sigmas(STEPS)[:-1], seen, strict=True):
        expected = (1 - sigma) * known + sigma * noise
        assert deviation(x[:, :10], expected[0, :, :10]) < 1e-6


def test_a_latent_is_as_long_as_it_is_unless_told_and_can_be_extended(tiny, latents):
    known = random(2, 24, FRAMES, seed=5)
    tiny.generate([CAT, STORM], num_steps=1, seed=3, latent=known, keep=[(0, 0.8)], duration=[0.8, 1.2])
    tiny.generate(CAT, num_steps=1, seed=3, latent=known[:1], keep=[(0, 0.4)])
    assert [item.shape[-1] for item in latents] == [FRAMES, 30, FRAMES]
    assert torch.equal(latents[0], known[0]) and torch.equal(latents[1][:, :FRAMES], known[1])
    longer, mask = extend(known, 0.2, 0.4)
    assert longer.shape == (2, 24, 35) and torch.equal(longer[..., 5:25], known)
    assert torch.equal(mask, torch.tensor([1.0] * 5 + [0.0] * 20 + [1.0] * 10))
    hard = time_mask(0.2, 0.4, FRAMES)
    assert torch.equal(hard, torch.tensor([0.0] * 5 + [1.0] * 5 + [0.0] * 10))
    assert torch.equal(time_mask(0.2, 0.4, FRAMES, feather=5e-324), hard)
    feathered = time_mask(0.2, 0.4, FRAMES, feather=0.12)
    assert feathered[5:10].eq(1).all() and not feathered[:2].any() and not feathered[13:].any()
    assert (feathered[2:6].diff() > 0).all() and torch.allclose(feathered[:5].flip(0), feathered[10:15])


# Loop


@pytest.mark.parametrize("frames, shift", [(60, 7), (60, 59), (3, 1), (1, 0)])
def test_the_sound_of_a_loop_is_periodic(tiny, mini, frames, shift):
    for model in (tiny, mini):
        latent = random(2, model.latent_channels, frames)
        turned = model.decode(latent.roll(shift, dims=-1), loop=True)
        assert turned.shape == (2, 640 * frames)
        assert deviation(turned, model.decode(latent, loop=True).roll(640 * shift, dims=-1)) < 1e-5
        reach = model.decoder.reach
        inside = slice(640 * reach, 640 * (frames - reach))
        if frames > 2 * reach:
            assert deviation(model.decode(latent, loop=True)[:, inside], model.decode(latent)[:, inside]) < 1e-5


@torch.inference_mode()
def test_each_step_of_a_loop_sees_the_clip_turned(tiny, latents):
    tiny.generate(BOTH, **SHORT, guidance_scale=1.0, loop=True)
    contexts = [tiny.encode_text(prompt)[0] for prompt in BOTH.prompts]
    mask = timeline_mask(BOTH.spans, [c.shape[1] for c in contexts], FRAMES)
    context, aligned = timelines.timeline_context(contexts), tiny.backbone.dummy_ta_embed[None, None]
    sigmas, x, shifts = make_sigmas(STEPS), draw_noise(3, 24, FRAMES)[None], []
    timesteps = make_timesteps(sigmas)
    modulations = tiny.backbone.modulation(timesteps).split(1)
    for sigma, following, t, modulation in zip(sigmas[:-1], sigmas[1:], timesteps, modulations, strict=False):
        shifts.append(shift := loop_shift(3, sigma.item(), FRAMES))
        turned = mask.roll(-shift, dims=0)[None]
        condition = tiny.backbone.condition(context, aligned, turned[:, None])
        if t >= 800:
            condition = condition._replace(entries=timelines.timeline_entries(turned))
        velocity = tiny.backbone.step(x.roll(-shift, dims=-1), modulation, [condition])
        x = x + (following - sigma) * velocity.roll(shift, dims=-1)
    assert len(set(shifts)) > 1
    assert deviation(latents[0], x[0]) < 1e-5


def test_shifts_of_a_loop_come_from_seed_and_sigma():
    shifts = [loop_shift(seed, sigma, 100) for seed in range(20) for sigma in (1.0, 0.5, 0.25)]
    assert len(set(shifts)) > 30 and min(shifts) >= 0 and max(shifts) < 100
    assert shifts == [loop_shift(seed, sigma, 100) for seed in range(20) for sigma in (1.0, 0.5, 0.25)]
    assert [loop_shift(7, sigma, 100) for sigma in (1.0, 0.5)] == [69, 51], "on any machine"


# Windows


def test_windows_cover_every_frame_and_overlap_by_half():
    for frames, window in itertools.product((1, 2, 9, 10, 11, 25, 99), (2, 3, 10)):
        size = min(window, frames)
        starts = window_starts(frames, size)
        assert {i for start in starts for i in range(start, start + size)} == set(range(frames))
        assert all(0 < b - a <= window // 2 for a, b in itertools.pairwise(starts)), "and none stands twice"


@torch.inference_mode()
def test_velocities_of_windows_are_blended(tiny, latents, rows):
    tiny.generate(CAT, **SHORT, guidance_scale=1.0, window=0.32)
    starts = [0, 4, 8, 12]
    assert rows == [(1, 8)] * (STEPS * len(starts))
    content = tiny.encode_text(CAT)[0]
    ramp, x = torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1]), draw_noise(3, 24, FRAMES)[None]
    sigmas, aligned = make_sigmas(STEPS), tiny.backbone.dummy_ta_embed[None, None]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        total, share = torch.zeros_like(x), torch.zeros(FRAMES)
        for start in starts:
            part = slice(start, start + 8)
            total[..., part] += ramp * tiny.backbone(x[..., part], sigma * 1000, content, aligned)
            share[part] += ramp
        x = x + (following - sigma) * total / share
    assert deviation(latents[0], x[0]) < 1e-5


# Listening


def test_parts_of_a_prompt_are_its_tokens(golden):
    """With tags that are one token, and with tags that are several."""
    file = golden.model.tokenizer.file
    prompt = "<|caption|> A cat meowing softly. <|asr|> We should go now <|env|> A quiet room."
    ids = file.encode(prompt)
    parts = prompt_parts(file.encode, prompt, words=True)
    assert [part.name for part in parts] == ["caption", *(f"asr: {word}" for word in "We should go now".split()), "env"]
    for part, text in zip(parts, ["A cat meowing softly.", "We", "should", "go", "now", "A quiet room."], strict=True):
        assert ids[part.first : part.end] == file.encode(text)[:-1]
    assert [part.name for part in prompt_parts(file.encode, prompt)] == ["caption", "asr", "env"]
    masks = part_masks(parts, parts[-1].first + 1)
    assert masks.sum(dim=1).tolist()[-1] == 1, "a prompt cut at the limit"


@torch.inference_mode()
def test_listening_asks_what_the_network_misses_without_a_part(tiny, rows):
    content, _, _ = tiny.encode_text(CAT)
    aligned = tiny.backbone.dummy_ta_embed[None, None]
    latent, noise = random(2, 1, 24, FRAMES)
    parts = part_masks(prompt_parts(tiny.tokenizer.file.encode, CAT), content.shape[1])
    curves = listen(tiny.backbone, latent, noise, tiny.backbone.condition(content, aligned), parts, sigma=0.3)
    assert curves.shape == (1, 3, FRAMES) and len(rows) == 4 and (curves >= 0).all() and curves.any()

    def error(context):
        velocity = tiny.backbone(0.7 * latent + 0.3 * noise, torch.tensor(300.0), context, aligned)
        return (velocity - (noise - latent)).square().mean(dim=1)[0]

    for part, curve in zip(parts, curves[0], strict=True):
        more = error(content[:, part == 0]) - error(content)
        expected = [more[max(0, t - 6) : t + 7].mean().clamp(min=0) for t in range(FRAMES)]
        assert deviation(curve, torch.stack(expected)) < 1e-5


# Together


def test_each_of_a_batch_is_what_it_is_alone_with_everything_on(tiny):
    """Two and two: test_mechanisms.py."""
    options = dict(emphasis={"env": 1.0}, latent=random(1, 24, FRAMES), keep=[(0.0, 0.2)], loop=True, window=0.4)
    options |= dict(guidance_rescale=0.7, apg=(0, 0, -0.5), zero_star=True)
    together = tiny.generate([BOTH, CAT], **SHORT, **options)
    for i, scene in enumerate([BOTH, CAT]):
        assert deviation(together[i], tiny.generate(scene, **SHORT | {"seed": 3 + i}, **options)[0]) <= 2e-5
