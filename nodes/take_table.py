"""The measures of takes as a table, which of them thresholds refuse, and which has most or least of one."""

from dataclasses import fields

from ..dasheng_core.delivery.measures import Measures

# What people read in a combo -> the field of Measures.
MEASURES = {field.name.replace("_", " "): field.name for field in fields(Measures)}
# Of each measure; an offset is a share of full scale.
UNITS = ("s", "", "dBFS", "dBTP", "samples", "dB", "LUFS", "", "", "dBFS")
# Under 8 letters each, so that tabs align them.
HEADER = "take seconds silence peak true_pk clipped crest LUFS words/s offset swing seed refused".replace(" ", "\t")
HEADER = HEADER.replace("_", " ")
UNIT_ROW = "\t".join(["", *UNITS, "", ""])


def table_row(number: int, found: Measures, seed: int | None, refused: str) -> str:
    """A line of the table, of the take of that number."""
    values = [shown_value(getattr(found, name)) for name in MEASURES.values()]
    return "\t".join([str(number), *values, shown_value(seed), refused])


def shown_value(value: float | None) -> str:
    """A measure as the table has it; a dash for None."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def refusal(
    found: Measures, min_peak: float, min_crest: float, max_silence: float, max_clipped: int, max_offset: float
) -> str:
    """Which thresholds a take does not meet; empty where it meets all."""
    reasons = {
        f"peak {shown_value(found.peak)} dBFS": found.peak < min_peak,
        # It stands where it is: no sound, however far from 0.
        f"swing {shown_value(found.swing)} dBFS": found.swing < min_peak <= found.peak,
        f"DC offset {found.offset:.2g}": max_offset < 1 and found.offset > max_offset,
        f"crest {shown_value(found.crest)} dB": found.crest < min_crest,
        f"silence {found.silence:.0%}": found.silence > max_silence,
        f"{found.clipped} clipped": 0 <= max_clipped < found.clipped,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def extreme_of(values: list[float | None], refused: list[str], extreme, name: str) -> int:
    """The take with the largest or smallest value among those not refused; any one where all are."""
    left = [i for i in range(len(values)) if not refused[i]]
    if left and all(values[i] is None for i in left):
        raise ValueError(
            f"No take has the measure {name}: loudness needs 0.4 s of one or two channels, words per second a transcript; give that, or "
            "pick by another measure."
        )
    return extreme((i for i in left if values[i] is not None), key=values.__getitem__, default=0)
