"""The paper's own systems on ImageNet, DiT and EDM2, as ComfyUI models: written anew from their papers."""
