"""Adapters for more families of models: Stable Diffusion XL, and text-to-image pipelines of diffusers in general."""
