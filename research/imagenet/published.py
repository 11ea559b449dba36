"""What others published of these checkpoints, to stand beside our numbers; each with where it can be read.

The REG paper shows its ImageNet results as curves of FID over Inception Score, of which no number is repeated here.
"""

PRESETS = "EDM2's authors, in the presets of generate_images.py (github.com/NVlabs/edm2)"
README = (
    "DiT's authors, in their README (github.com/facebookresearch/DiT): Inception Score 278.24 at 256, 240.82 at 512"
)
FIDS = {  # checkpoint: (how it was guided, FID of 50,000 pictures, source)
    "DiT-XL-2-256x256": ("CFG", 2.27, README),
    "DiT-XL-2-512x512": ("CFG", 3.04, README),
    "edm2-img512-xs-2147483-0.045": ("CFG, cfg 1.4", 2.91, PRESETS),
    "edm2-img512-s-2147483-0.025": ("CFG, cfg 1.4", 2.23, PRESETS),
    "edm2-img512-m-2147483-0.030": ("CFG, cfg 1.2", 2.01, PRESETS),
    "edm2-img512-l-1879048-0.015": ("CFG, cfg 1.2", 1.88, PRESETS),
    "edm2-img512-xl-1342177-0.020": ("CFG, cfg 1.2", 1.85, PRESETS),
    "edm2-img512-xxl-0939524-0.015": ("CFG, cfg 1.2", 1.81, PRESETS),
    "edm2-img512-s-2147483-0.070": ("AutoGuidance, cfg 2.1", 1.34, PRESETS),
    "edm2-img512-xxl-0939524-0.075": ("AutoGuidance, cfg 2.05", 1.25, PRESETS),
    "edm2-img64-s-1073741-0.045": ("AutoGuidance, cfg 1.7", 1.01, PRESETS),
    "edm2-img512-xs-2147483-0.135": ("none", 3.53, PRESETS),
    "edm2-img512-s-2147483-0.130": ("none", 2.56, PRESETS),
    "edm2-img512-m-2147483-0.100": ("none", 2.25, PRESETS),
    "edm2-img512-l-1879048-0.085": ("none", 2.06, PRESETS),
    "edm2-img512-xl-1342177-0.085": ("none", 1.96, PRESETS),
    "edm2-img512-xxl-0939524-0.070": ("none", 1.91, PRESETS),
    "edm2-img64-s-1073741-0.075": ("none", 1.58, PRESETS),
    "edm2-img64-m-2147483-0.060": ("none", 1.43, PRESETS),
    "edm2-img64-l-1073741-0.040": ("none", 1.33, PRESETS),
    "edm2-img64-xl-0671088-0.040": ("none", 1.33, PRESETS),
}
