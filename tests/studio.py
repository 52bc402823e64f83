"""Graphs of the nodes behind Dasheng Decode."""

import json

from graphs import Graph

PROMPT = "<|caption|> A cat meowing softly."
FINISH = dict(trim=True, trim_below=-60.0, padding=0.05, fade_in=0.01, fade_out=0.05, level="as it is", target=-23.0)
AS_IT_IS = {**FINISH, "trim": False, "fade_in": 0.0, "fade_out": 0.0}
SAVE = dict(filename_prefix="wav/test", bit_depth="32 bit float", loop=False, loop_start=0.0, loop_end=0.0, markers="")
PICK = dict(pick="number", number=1, measure="loudness", min_peak=-60.0, min_crest=0.0, max_silence=1.0, max_clipped=-1)


class Studio(Graph):
    def save(self, audio, **options):
        self.add("DashengSaveWAV", audio=audio, **{**SAVE, **options})
        return self

    def finish(self, audio, **options):
        return self.add("DashengFinish", audio=audio, **{**FINISH, **options})

    def pick(self, audio=None, **options):
        return self.add("DashengPickTake", audio=audio or self.value("takes"), **{**PICK, **options})

    def convert(self, audio, sample_rate="as it is", channels="as it is", **more):
        return self.add("DashengConvert", audio=audio, sample_rate=sample_rate, channels=channels, **more)

    def mix(self, bed, layer, at=0.5, layer_db=0.0):
        return self.add("DashengMix", bed=bed, layer=layer, at=at, layer_db=layer_db)

    def draw(self, audio, width=256, row_height=128, **more):
        return self.add("DashengSpectrogram", audio=audio, width=width, row_height=row_height, **more)

    def many(self, *values):
        return self.add("ProbeList", values=json.dumps(values))

    def sampled(self, seed=40, batch_size=3, seconds=0.6):
        model, clip, self.vae = self.loaders()
        latent = self.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=batch_size)
        return self.sample(model, self.encode(clip, PROMPT), latent, seed=seed, steps=2)

    def decode(self, latent):
        return self.add("DashengDecode", vae=self.vae, latent=latent)

    def spans(self, *spans, overlap="replace", fade=0.0):
        """A timeline of (caption, start, end)."""
        clip, timeline = self.loaders()[1], {}
        for caption, start, end in spans:
            prompt = self.encode(clip, f"<|caption|> {caption}")
            inputs = dict(conditioning=prompt, start=start, end=end, fade=fade, overlap=overlap, **timeline)
            timeline = {"timeline": self.add("DashengTimeline", **inputs)}
        return timeline["timeline"]
