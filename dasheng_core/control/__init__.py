"""Mechanisms of control: plain functions on prompts, conditions and latents, and around the velocity (:mod:`.nest`)."""
