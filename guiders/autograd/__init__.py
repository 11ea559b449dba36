"""Gradients through ComfyUI's models, for the length of one pass, touching nothing that outlives it."""
