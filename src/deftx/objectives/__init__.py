"""Language modelling objectives: masked, causal, and denoising for encoder-decoders."""
