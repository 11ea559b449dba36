"""The paper's tables anew: DiT and EDM2 on ImageNet, sampled and judged. `python3 dev.py imagenet --help`."""
