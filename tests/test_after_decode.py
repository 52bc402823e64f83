"""ComfyUI's own nodes behind our sounds: into a video, beside one another, one after another, one over another."""

import av
import numpy as np
import pytest
import torch

from dasheng_core.audio_tokenizer.spectral import resample
from graphs import complete
from studio import AS_IT_IS, Studio

# Of what clip, and in the file's own rate.
FPS, FRAMES = 10, 8


class Scene(Studio):
    """Three takes of one scene, 0.8 s each."""

    def __init__(self):
        super().__init__()
        self.takes = self.made(seed=5, batch_size=3)

    def made(self, seed, batch_size=1):
        return self.decode(self.sampled(seed, batch_size, seconds=FRAMES / FPS))

    def level(self, audio, peak=-6.0):
        return self.finish(audio, **{**AS_IT_IS, "level": "true peak", "target": peak})


def sounds(server, scene: Scene, *audios) -> list[tuple[torch.Tensor, int]]:
    """``[C, L]`` and rate of each file of these sounds, saved as they are."""
    for audio in audios:
        scene.save(audio, filename_prefix="after/x")
    return [(samples.T, rate) for samples, rate in complete(server, scene).audio()]


def known(server, *names: str) -> None:
    for name in names:
        if name not in server.get("/object_info"):
            pytest.skip(f"this ComfyUI has no node {name}")


def likeness(found: np.ndarray, expected: np.ndarray) -> float:
    """The highest correlation of two sounds at any shift: lossy coders delay."""
    length = len(found) + len(expected)
    spectrum = np.fft.rfft(found, length) * np.fft.rfft(expected, length).conj()
    return np.fft.irfft(spectrum, length).max() / np.linalg.norm(found) / np.linalg.norm(expected)


@pytest.mark.parametrize("rate", ["as it is", "48000"])
def test_each_take_becomes_the_sound_of_a_video(server, rate):
    """A batch given to Create Video directly would be one take only, or all of them strung together."""
    scene = Scene()
    takes = scene.convert(scene.level(scene.takes), rate)
    images = scene.add("EmptyImage", width=64, height=64, batch_size=FRAMES, color=0)
    video = scene.add("CreateVideo", images=images, fps=float(FPS), audio=takes)
    scene.add("SaveVideo", video=video, filename_prefix="video/rain", format="mp4", codec="h264")
    scene.save(takes)
    result = complete(server, scene)
    videos = result.files("images") or result.files("video")
    assert len(videos) == 3
    for path, (samples, expected_rate) in zip(videos, result.audio(), strict=True):
        with av.open(str(path)) as file:
            stream = file.streams.audio[0]
            sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(stream)])
            assert stream.rate == expected_rate and abs(len(sound) / stream.rate - FRAMES / FPS) < 0.2
        assert likeness(sound, samples[:, 0].numpy()) > 0.9


def test_two_seeds_as_the_channels_of_an_ambience(server):
    """By our node on every version; by Join Audio Channels where there is one, to the same samples."""
    scene = Scene()
    pair = scene.made(seed=5, batch_size=2)
    wide, left, right = scene.convert(pair, channels="takes as left and right"), scene.made(5), scene.made(6)
    (ours, rate), (first, _), (second, _) = sounds(server, scene, wide, left, right)
    assert rate == 16000
    torch.testing.assert_close(ours, torch.cat([first, second]), rtol=0, atol=1e-4)
    known(server, "JoinAudioChannels")
    joined = scene.add("JoinAudioChannels", audio_left=left, audio_right=right)
    *_, (core, rate) = sounds(server, scene, joined)
    assert rate == 16000 and torch.equal(core, torch.cat([first, second]))


def test_audio_merge_turns_a_loud_sum_down_and_dasheng_mix_does_not(server):
    scene = Scene()
    bed, layer = (scene.level(scene.pick(scene.takes, number=number), peak=-0.5) for number in (1, 2))
    twice = scene.mix(bed, bed, at=0.0)
    merged = scene.add("AudioMerge", audio1=bed, audio2=bed, merge_method="add")
    low = scene.level(bed, -12.0), scene.level(layer, -12.0)
    quiet, mixed = scene.add("AudioMerge", audio1=low[0], audio2=low[1], merge_method="add"), scene.mix(*low, at=0.0)
    (one, _), (ours, _), (core, _), (core_quiet, _), (ours_quiet, _) = sounds(
        server, scene, bed, twice, merged, quiet, mixed
    )
    torch.testing.assert_close(ours, 2 * one)
    assert ours.abs().max() > 1.5
    torch.testing.assert_close(core, ours / ours.abs().max())
    torch.testing.assert_close(core_quiet, ours_quiet)


def test_comfyuis_nodes_take_what_ours_prepare(server):
    """Audio Concat brings a take and a recording to the higher rate and to two channels; Split Audio Channels needs two."""
    scene = Scene()
    one, recording = scene.pick(scene.takes, number=2), scene.add("LoadAudio", audio="recording.wav")
    split = scene.add("SplitAudioChannels", audio=scene.convert(one, channels="stereo"))
    joined = scene.add("AudioConcat", audio1=one, audio2=recording, direction="after")
    made = sounds(server, scene, one, split(0), split(1), joined, recording)
    (first, _), (left, _), (right, _), (both, rate), (second, _) = made
    assert torch.equal(left, first) and torch.equal(right, first) and rate == 44100
    expected = torch.cat([resample(first, 16000, 44100).expand(2, -1), second], dim=1)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-4)
    known(server, "AudioEqualizer3Band")
    options = dict(low_gain_dB=0.0, low_freq=100, mid_gain_dB=0.0, mid_freq=1000, mid_q=0.7)
    options |= dict(high_gain_dB=-12.0, high_freq=10000)
    scene = Scene()
    # Its high shelf at 10 kHz lies beyond the 8 kHz of a take.
    wide = scene.convert(scene.level(scene.pick(scene.takes)), "48000")
    (before, _), (after, rate) = sounds(server, scene, wide, scene.add("AudioEqualizer3Band", audio=wide, **options))
    assert rate == 48000 and after.isfinite().all() and 0.5 < after.norm() / before.norm() < 1.1
