"""The pilot: the same noises with and without REG, on your own model and prompts, measured and judged."""
