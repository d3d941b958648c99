"""The K2.5-shaped family: latent attention and mixture of experts."""
