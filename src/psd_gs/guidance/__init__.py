"""Score distillation: base scores times preference scores, as one gradient on the rendered latent."""
