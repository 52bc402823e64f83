"""The mini model, whole: its weights, its world and training, its judges and scores."""

from pathlib import Path

# The repository's.
ROOT = Path(__file__).resolve().parent.parent
