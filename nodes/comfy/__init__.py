"""What ComfyUI subclasses or calls: MODEL, CLIP, VAE and their patchers, and what one sampling call holds."""
