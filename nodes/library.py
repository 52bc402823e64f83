"""What saved takes say for a sound library: names by UCS, and chunks of a WAV."""

from ..dasheng_core.delivery.library_tags import NO_TAGS, UCS_BLOCKS, LibraryTags
from ..dasheng_core.delivery.tagged_sound import TaggedSound
from .takes import Take


def name_by_ucs(prefix: str, tags: LibraryTags) -> str:
    """A file name with ``%ucs%``, ``%CatID%`` and the other blocks filled in. Raises ValueError for one that is not there."""
    for name, called in UCS_BLOCKS.items():
        if f"%{called}%" in prefix and not getattr(tags, name):
            raise ValueError(
                f"filename_prefix has %{called}%, and metadata has no {called}: add a line {called} = ... there."
            )
        prefix = prefix.replace(f"%{called}%", getattr(tags, name))
    return prefix.replace("%ucs%", tags.ucs_name()) if "%ucs%" in prefix else prefix


def library_chunks(take: Take, number: int, tags: LibraryTags, says_seed: bool) -> bytes:
    """The chunks of a take. Where nobody says anything of a sound, there are none.

    ``says_seed``: whether the file may say how the take was made. A sound without a known seed may be no model's.
    """
    by_a_model = take.seed is not None
    if tags == NO_TAGS and not (by_a_model and says_seed):
        return b""
    seed = take.seed if says_seed else None
    return TaggedSound(
        tags, take.waveform, take.sample_rate, seed, number, cut=take.cut, by_a_model=by_a_model
    ).chunks()
