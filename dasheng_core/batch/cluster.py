"""A batch on Ray: Ray Data hands chunks of clips to a pool of workers, and restarts those that die."""

import argparse
import json
import logging
import os
import pickle
import re
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..quoting import plain
from .rows import EXTRA

# How long the first workers may take to start, where a cluster has to fetch machines for them.
START_SECONDS = 600
# No chunk in this time: a clip kills its worker each time, perhaps for lack of memory.
STUCK_SECONDS = 24 * 3600.0
# Clips per chunk: four evaluations of clips of ten seconds. A restarted worker skips the clips that are written.
MOST_CLIPS = 40
# Where an evaluation of many clips hardly takes longer than one: so many that those of a length, which the model estimates, fill it.
# A processor would read all their texts first for nothing.
MOST_CLIPS_OF_GPU = 1000


def most_clips(args: argparse.Namespace) -> int:
    """Clips per chunk."""
    return MOST_CLIPS if args.device == "cpu" else MOST_CLIPS_OF_GPU


def make_on_ray(
    args: argparse.Namespace, clips: int, chunks: Callable[[int], Iterator[list[Any]]], worker: type, *arguments: Any
) -> Generator[dict[str, Any], None, None]:
    """The entries that a pool of ``worker(*arguments)`` returns for so many clips, in any order.

    Args:
        chunks: clips per chunk -> chunks; called twice, and gives the same twice.

    Raises:
        ValueError: no Ray, or a pool that does not fit.
        OSError: no cluster at that address, no worker in time, or an error from which Ray cannot recover.
    """
    # Ray sends no usage statistics, and logs no warnings about its workers, unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # After a stop, threads that Ray Data leaves behind would join the cluster again.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Give up after one minute without an answer, not twenty.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"--ray needs Ray, which is not installed: {EXTRA}.") from error
    if args.device == "auto" and args.gpus_per_worker is None:
        raise ValueError("--device is auto, and Ray must know in advance what a worker needs: give cpu or cuda.")
    gpus = float(args.device.startswith("cuda")) if args.gpus_per_worker is None else args.gpus_per_worker
    least, most = args.workers
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        local = {"include_dashboard": False} if args.ray == "local" else {}
        ray.init(address=args.ray, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise OSError(
            f"No Ray cluster answers at {plain(args.ray)} ({plain(error)}): start one, set its RAY_AUTH_TOKEN, or give --ray local."
        ) from error
    finally:
        # Ray installs a handler of its own.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        room = slots([node["Resources"] for node in ray.nodes() if node["Alive"]], args.cpus_per_worker, gpus)
        if room < least:
            raise ValueError(
                f"{least} workers, each with {args.cpus_per_worker:g} CPUs and {gpus:g} GPUs, do not fit into the cluster, "
                f"which has room for {room}: start more nodes, or change --workers, --cpus-per-worker or --gpus-per-worker."
            )
        if most is None and args.ray == "local":
            most = room
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = STUCK_SECONDS
        if context.wait_for_min_actors_s < 0:
            context.wait_for_min_actors_s = START_SECONDS
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # Eight chunks per worker, so that no worker computes alone for long at the end.
        size = max(1, min(most_clips(args), clips // (8 * room)))
        data = ray.data.from_blocks(_Blocks(chunks, size)).map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=args.cpus_per_worker,
            num_gpus=gpus,
        )
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(json.loads, batch["entry"])
    except ray.exceptions.GetTimeoutError as error:
        raise OSError(
            f"{least} workers did not start in {context.wait_for_min_actors_s} s: other jobs hold the cluster, or its nodes "
            "do not come up; wait, or ask for fewer by --workers."
        ) from error
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        if missing := re.search(r"No module named '([\w.]+)'", str(error)):
            raise OSError(
                f"A node of the cluster has no {missing[1]}: install this package on every node ({EXTRA}); --resume goes on."
            ) from error
        raise OSError(f"Ray cannot go on: {plain(error, 400)}; --resume goes on.") from error
    finally:
        ray.shutdown()


def slots(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many workers nodes of such resources have room for."""
    wanted = [(kind, amount) for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount]
    return sum(min(int(node.get(kind, 0) / amount + 1e-6) for kind, amount in wanted) for node in nodes)


class _Blocks:
    """Ray reads its list of blocks twice; this makes them again each time, so that they are never all in memory."""

    def __init__(self, chunks: Callable[[int], Iterator[list[Any]]], size: int):
        self.chunks, self.size = chunks, size

    def __iter__(self) -> Iterator[Any]:
        import pyarrow

        for chunk in self.chunks(self.size):
            yield pyarrow.table({"clip": [pickle.dumps(clip) for clip in chunk]})
