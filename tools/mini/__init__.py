"""The mini model's world and training: a small model of the published architecture, trained on synthetic sound."""
