"""FID, Inception Score, precision and recall by torch-fidelity, against statistics of ADM's kind.

ADM's reference files (openai/guided-diffusion, evaluations) are .npz with `mu` and `sigma` of the whole data set and, in
`arr_0`, ten thousand of its pictures.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from .features import Extractor

COLUMNS = ("FID", "IS", "precision", "recall")
NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al., arXiv 1904.06991)
PART = 64  # pictures looked at together


@dataclass
class Reference:
    """What samples are compared with."""

    mu: np.ndarray  # [width]
    sigma: np.ndarray  # [width, width]
    pictures: np.ndarray | None = None  # [n, h, w, 3] uint8, for precision and recall


def read_reference(path: Path) -> Reference:
    """A reference file. Nothing in it is unpickled.

    Raises:
        ValueError: the file is not one, or is not there.
    """
    if not path.is_file():
        raise ValueError(f"REG: there is no reference {path}: docs/imagenet.md says where to get it.")
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
            pictures = file["arr_0"] if "arr_0" in file.files else None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise ValueError(
            f"REG: {path.name} is no reference of ADM's ({reason}): it needs mu and sigma, and arr_0 with pictures for "
            "precision and recall."
        ) from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"REG: {path.name} has mu {mu.shape} and sigma {sigma.shape}, which do not fit each other.")
    if pictures is not None and (pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8):
        raise ValueError(
            f"REG: arr_0 of {path.name} is {pictures.dtype} {pictures.shape} and should be uint8 (n, height, width, 3)."
        )
    return Reference(mu, sigma, pictures)


def seen_by_another(real: Tensor | None) -> Reference:
    """A reference of the features of its pictures, [n, width]: its own statistics are Inception's.

    Raises:
        ValueError: it has no pictures.
    """
    if real is None:
        raise ValueError("REG: this reference has no pictures (arr_0), so only Inception can be compared with it.")
    return Reference(**fid_features_to_statistics(real.double()))


def judge(features: Tensor, logits: Tensor, reference: Reference, real: Tensor | None) -> dict[str, float]:
    """The measures of samples, by COLUMNS.

    Args:
        features, logits: [n, width] and [n, classes] of the samples.
        real: features of the reference's pictures, [m, width]; without them there is neither precision nor recall.

    Raises:
        ValueError: the reference was made with another network of features.
    """
    if features.shape[1] != len(reference.mu):
        raise ValueError(
            f"REG: the reference has {len(reference.mu)} features and the samples have {features.shape[1]}: it was made "
            "with another network."
        )
    ours = fid_features_to_statistics(features.double())
    found = fid_statistics_to_metric(ours, {"mu": reference.mu, "sigma": reference.sigma}, False)
    found |= isc_features_to_metric(logits)
    if real is not None and min(len(real), len(features)) > NEIGHBOURS:
        options = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": 10_000, "save_cpu_ram": True, "verbose": False}
        found |= prc_features_to_metric(features, real, **options)
    names = ("frechet_inception_distance", "inception_score_mean", "precision", "recall")
    return {column: found.get(name, float("nan")) for column, name in zip(COLUMNS, names, strict=True)}


def features_of(pictures: np.ndarray, extract: Extractor) -> Tensor:
    """[n, width] of the reference's pictures, [n, h, w, 3] uint8."""
    parts = (torch.from_numpy(pictures[i : i + PART]).permute(0, 3, 1, 2) for i in range(0, len(pictures), PART))
    return torch.cat([extract(part)[0] for part in parts])
