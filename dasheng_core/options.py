"""The options of sampling: one checked value, whose fields also say what the command line and the docs call them.

Nothing here needs torch, so that ``dasheng --help`` answers before it is imported.
"""

import math
from dataclasses import KW_ONLY, Field, asdict, dataclass, field, fields
from typing import Any, TypedDict

from .duration import FRAME_RATE, MAX_SECONDS
from .inputs import as_choice, as_float, as_int, as_list

MAX_STEPS = 10_000
MAX_GUIDANCE = 1000.0
# The grid 1 - u stops being monotonic outside these: du/dx = 1 + s (1 - pi/2 sin(pi x/2)) changes sign.
SWAY_MIN, SWAY_MAX = -1.0, 2.0 / (math.pi - 2.0)
# Steps -> the points of the grid of 32 steps that EPSS (arXiv 2505.19931) keeps: all near the noise, few near the data.
EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}
GRIDS = ("full", "epss")
# The least time at which the judges of the mini model hear no difference to 25 steps: docs/speed.md.
DRAFT = {"num_steps": 7, "grid": "full"}
# How noise is drawn: frame by frame, so that the first frames do not depend on the clip's length, or channel by channel.
NOISES = ("steady", "plain")
# Names of the dtypes a backbone may have.
BACKBONE_DTYPES = ("bf16", "fp16", "fp32")
# And as ``dasheng repack`` stores it.
REPACKED = ("bf16", "fp8", "fp32")
# Seconds in which a prompt of a timeline gives way to the next.
# The least and the largest distance of two variations of one sound, see dasheng_core.delivery.variations; how many are a set.
DISTANCES = 0.005, 0.5
MOST_VARIATIONS = 64
FADE = 0.4

APG = tuple[float, float, float]


def option(default: Any, help: str, flag: str | None = None, group: str = "sampling", **arguments: Any) -> Any:
    """A field of :class:`SamplingOptions`, and its argument on the command line.

    Args:
        help: one line, for the command line and for the table of docs/python.md.
        flag: None: made of the field's name.
        group: of arguments; "faster" holds what trades the published result for time.
        arguments: of ``add_argument``.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "group": group, "arguments": arguments})


def flag_of(option: "Field[Any]") -> str:
    """What the command line calls a field."""
    return option.metadata["flag"] or f"--{option.name.replace('_', '-')}"


@dataclass(frozen=True)
class SamplingOptions:
    """How a clip is sampled; the defaults are the published ones.

    Raises:
        ValueError: a number out of its range, or two fields that exclude each other.
    """

    num_steps: int = option(25, "evaluations of the network, 1 to 10000", "--steps", type=int, metavar="N")
    guidance_scale: float = option(
        5.0,
        "of classifier-free guidance; 1 or less evaluates the conditional branch alone, in half the time",
        "--guidance",
        type=float,
        metavar="SCALE",
    )
    sway_sampling_coef: float = option(
        -1.0,
        "where the steps lie, from -1 (most near the noise) to 1.75; 0 spreads them evenly",
        "--sway",
        type=float,
        metavar="S",
    )
    _: KW_ONLY
    grid: str = option(
        "full",
        f"epss: few steps, most near the noise; needs {', '.join(map(str, [*EPSS][:-1]))} or {[*EPSS][-1]} steps",
        group="faster",
        choices=GRIDS,
    )
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "lowest and highest sigma with guidance, from 0, the sound, to 1, noise (arXiv 2404.07724); steps outside it take half the "
        "time",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    noise_kind: str = option(
        "steady",
        "steady: a clip of another length begins with the same noise, and sounds alike; plain: as torch.randn draws a whole clip",
        "--noise",
        choices=NOISES,
    )
    guidance_rescale: float = option(
        0.0,
        "share of the way back to the deviation of unguided velocities (arXiv 2305.08891); 0 is off, 0.7 is usual",
        type=float,
        metavar="SHARE",
    )
    apg: APG | None = option(
        None,
        "adaptive projected guidance (arXiv 2410.02416): share of the part along the sound, limit of the root mean square (0: none) "
        "and momentum; 0 0 -0.5 is a start",
        type=float,
        nargs=3,
        metavar=("PARALLEL", "LIMIT", "MOMENTUM"),
    )
    zero_star: bool = option(
        False,
        "CFG-Zero* (arXiv 2503.18886): scale the unconditional velocity to come nearest to the conditional one",
        action="store_true",
    )
    loop: bool = option(False, "the end of the clip joins its beginning", group="direction", action="store_true")
    graphs: bool = option(
        False,
        "repeat a step as a CUDA graph, on an NVIDIA GPU: the same sound; has not run on one yet, so that it is off unless asked for",
        action="store_true",
    )
    window: float | None = option(
        None,
        "evaluate a longer clip in windows of so many seconds that overlap by half, at twice the time; 9.92 is what the published "
        "model was trained on",
        group="direction",
        type=float,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        steps = check_schedule(self.num_steps, self.sway_sampling_coef, self.grid)
        remedy = "it is two sigmas, the lower one first; 0 and 1 guide every step"
        interval = tuple(
            as_float(s, "A bound of the guidance interval", 0, 1, remedy) for s in as_list(self.guidance_interval)
        )
        if len(interval) != 2 or interval[0] > interval[1]:
            raise ValueError(f"The guidance interval is {interval}, expected another: {remedy}.")
        window = None if self.window is None else as_window(self.window)
        as_choice(self.noise_kind, "noise_kind", NOISES)
        checked = {
            "num_steps": steps,
            "guidance_scale": as_guidance(self.guidance_scale),
            "guidance_rescale": as_float(
                self.guidance_rescale, "guidance_rescale", 0, 1, "0 is off, and its paper uses 0.7"
            ),
            "apg": None if self.apg is None else as_apg(self.apg),
            "guidance_interval": interval,
            "window": window,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class FurtherOptions(TypedDict, total=False):
    """The fields of :class:`SamplingOptions` that ``generate`` and ``sample`` take by name."""

    grid: str
    guidance_interval: tuple[float, float]
    noise_kind: str
    guidance_rescale: float
    apg: APG | None
    zero_star: bool
    loop: bool
    graphs: bool
    window: float | None


def check_schedule(num_steps: int, sway_sampling_coef: float, grid: str = "full", most: int = MAX_STEPS) -> int:
    """The number of steps. Raises ValueError for an impossible number, an unknown grid, or a sway coefficient whose grid does not fall."""
    num_steps = as_int(num_steps, "The number of steps", 1, most, "the published model uses 25")
    if as_choice(grid, "grid", GRIDS) == "epss" and num_steps not in EPSS:
        *some, last = EPSS
        raise ValueError(
            f"{num_steps} steps: epss grids exist for {', '.join(map(str, some))} and {last} steps; take one of these "
            "numbers (with denoise below 1, of steps divided by denoise), or the full grid."
        )
    remedy = "elsewhere sigmas would not fall; the published model uses -1.0, and 0 is a linear schedule"
    as_float(sway_sampling_coef, "The sway coefficient", SWAY_MIN, SWAY_MAX, remedy)
    return num_steps


def as_guidance(scale: object) -> float:
    """A guidance scale. Raises ValueError for an impossible one."""
    return as_float(scale, "The guidance scale", 0, MAX_GUIDANCE, "the published model uses 5.0, and 1 is no guidance")


def as_apg(apg: object) -> APG:
    """Parallel, limit and momentum. Raises ValueError for others."""
    given, remedy = as_list(apg), "apg is parallel, limit and momentum, as in 0 0 -0.5"
    if len(given) != 3:
        raise ValueError(f"apg has {len(given)} numbers, expected 3: {remedy}.")
    parallel, limit, momentum = given
    return (
        as_float(parallel, "The parallel of apg", 0, 1, remedy),
        as_float(limit, "The limit of apg", 0, 1000, remedy),
        as_float(momentum, "The momentum of apg", -1, 1, remedy),
    )


def as_window(window: object) -> float:
    """A window in seconds. Raises ValueError for one that cannot overlap the next."""
    remedy = "it is in seconds; 9.92 is what the published model was trained on"
    return as_float(window, "window", 2 / FRAME_RATE, MAX_SECONDS, remedy)


OPTIONS = fields(SamplingOptions)
DEFAULT_OPTIONS = asdict(SamplingOptions())
