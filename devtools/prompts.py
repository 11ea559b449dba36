"""A prompt for the server with the demo model, as tests and `soak` queue it."""

PROMPT = {"shape": "square", "colour": "green", "background": "light", "count": "1"}
EMPTY = dict.fromkeys(PROMPT, "any")
CFG = 4.0


def demo(seed: int, options: dict | None, steps: int, batch: int = 1) -> dict:
    """Saves the latent sampled with CFG, or with REG by these options of its node."""
    sampled = {
        "model": ["reg" if options else "model", 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["empty", 0],
    }
    settings = {"cfg": CFG, "steps": steps, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    nodes = {
        "model": ("REGDemoModel", {}),
        "positive": ("REGDemoPrompt", PROMPT),
        "negative": ("REGDemoPrompt", EMPTY),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": batch}),
        "sample": ("KSampler", {"seed": seed, **sampled, **settings}),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "demo"}),
    }
    if options:
        nodes["reg"] = ("REGModel", {"model": ["model", 0], **options})
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
