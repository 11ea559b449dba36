"""What the judges see of a picture: Inception's features, or those of a small network of ours to try the command with."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

Extractor = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 [n, 3, h, w] -> float32 features [n, d], logits [n, k]
NAMES = ("inception", "tiny")


@cache
def extractor(name: str) -> Extractor:
    """Raises ValueError: torch-fidelity is missing, or cannot get its network."""
    return inception() if name == "inception" else tiny()


def inception() -> Extractor:
    """The network that FID is defined by, ported from TensorFlow; torch-fidelity downloads it once."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    except ImportError as error:
        raise ValueError("REG: the measures need torch-fidelity: `pip install torch-fidelity`.") from error
    except OSError as error:
        raise ValueError(
            f"REG: torch-fidelity could not download Inception ({error}): check the network, or put its file into torch's "
            "cache folder."
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.eval().to(device)

    @torch.inference_mode()
    def extract(pictures: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pictures.to(device))
        return features.float().cpu(), logits.float().cpu()

    return extract


def tiny() -> Extractor:
    """Random features of the right form: they say nothing of a picture's quality."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        head = nn.Linear(16, 8).eval()

    @torch.inference_mode()
    def extract(pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = body(pictures.float() / 127.5 - 1)
        return features, 10 * head(features)

    return extract
