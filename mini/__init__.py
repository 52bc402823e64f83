"""The mini model, whole: its weights, its world and training, its judges and scores."""
