"""Files on disk -> modules: what a checkpoint is, how it is read, quantised and repacked."""
