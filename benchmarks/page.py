#!/usr/bin/env python3
"""What the page of a batch costs: ``python -m benchmarks.page [--sounds 1000] [--opened 5]``.

Sounds of one second are made without a model, their page is written, and opened in Chromium from the disk: the median time until the
first sounds are seen, and the most elements while it is scrolled from end to end.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dasheng_core.batch import worker
from dasheng_core.cli import batch
from dasheng_core.cli.arguments import build_parser
from tools.frontend import open_chromium

SCROLL = """async () => {
    let most = 0;
    for (let top = 0; top < main.scrollHeight; top += main.clientHeight / 2) {
        main.scrollTop = top;
        await new Promise(requestAnimationFrame);
        most = Math.max(most, document.getElementsByTagName('*').length);
    }
    return most;
}"""


class Hiss:
    """In the model's place."""

    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)

    @staticmethod
    def generate(prompts, **options):
        return torch.randn(len(prompts), 16000) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sounds", type=int, default=1000)
    parser.add_argument("--opened", type=int, default=5, help="times (default: %(default)s)")
    args = parser.parse_args()
    worker.load_model = lambda args: Hiss()
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder, "scenes.jsonl")
        lines = [{"caption": f"Rain {i}.", "seconds": 1, "takes": 4} for i in range(args.sounds // 4)]
        scenes.write_text("".join(json.dumps(line) + "\n" for line in lines))
        output = ["-o", f"{folder}/{{index}}.wav", "--manifest", f"{folder}/manifest.jsonl", "--seed", "1"]
        command = ["batch", str(scenes), "--audiogen", "nowhere", *output]
        batch.run(build_parser().parse_args(command))
        took = {}
        for option in ("--resume", "--page"):
            started = time.perf_counter()
            batch.run(build_parser().parse_args([*command, "--resume", option]))
            took[option] = time.perf_counter() - started
        opened = []
        page = Path(folder, "scenes.html")
        with open_chromium() as browser:
            for _ in range(args.opened):
                tab = browser.new_page(viewport={"width": 1440, "height": 900})
                started = time.perf_counter()
                tab.goto(page.as_uri(), wait_until="commit")
                tab.locator(".card").first.wait_for()
                opened.append(time.perf_counter() - started)
                nodes = tab.evaluate(SCROLL)
                tab.close()
        print(f"opened: {statistics.median(opened):.2f} s; elements: {nodes}; page: {page.stat().st_size / 1e6:.1f} MB")
        print(f"written: {1000 * (took['--page'] - took['--resume']) / args.sounds:.1f} ms per sound")


if __name__ == "__main__":
    main()
