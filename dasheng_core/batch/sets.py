"""The clips of a scene with ``variations``: made as one set, of which each is a file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..delivery.variations import Variations, make_variations
from ..pipeline import DashengAudioGen
from ..sampling import item_seeds
from .jobs import Clip


class SetMaker:
    """Makes the set that a clip is of; the last one is kept, since its clips come one after another.

    A set is computed again where some of its clips are made by another worker, or later: the same takes are drawn.
    """

    def __init__(self, apart: tuple[float, float]):
        self.apart = apart
        self._key: Any = None
        self._made: Variations | ValueError | None = None

    def make(
        self, model: DashengAudioGen, clip: Clip, together: int, options: Mapping[str, Any]
    ) -> tuple[Clip, Tensor]:
        """The clip with the seed that its take was drawn with, and its sound ``[samples]``. Raises ValueError.

        Args:
            together: how many takes are made in one evaluation, at most.
            options: of ``generate``, with its duration.
        """
        key = clip.scene, clip.seed
        if key != self._key:
            # Of what is broken off, nothing is kept.
            self._key = self._made = None
            try:
                self._made = make_variations(
                    model, clip.prompt, clip.takes, clip.seed, self.apart, together, negative=clip.negative, **options
                )
            except (ValueError, ImportError) as error:
                # Nor are the takes drawn again for each of its clips.
                self._made = ValueError(str(error))
            self._key = key
        if not isinstance(self._made, Variations):
            raise ValueError(str(self._made))
        number = self._made.numbers[clip.take - 1]
        return replace(clip, seed=item_seeds(clip.seed, number + 1)[-1]), self._made.sounds[clip.take - 1]
