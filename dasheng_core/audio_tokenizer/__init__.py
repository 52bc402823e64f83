"""The audio tokenizer: waveform -> latent (encoder) and latent -> waveform (decoder), with its spectral transforms."""
