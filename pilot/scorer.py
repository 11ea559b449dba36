"""Prompts and pictures in one space, by any model of transformers' CLIP family from a local folder."""

from pathlib import Path

import numpy as np

BATCH = 16


class ScorerError(ValueError):
    """The folder holds no model that can score; the message says what is missing."""


class Scorer:
    """Embeds pictures and texts as unit vectors. Nothing is downloaded, and no code of the folder is run."""

    def __init__(self, folder: Path):
        """Raises ScorerError: there is no such model in the folder."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ScorerError(
                f"REG: there is no scorer in {folder}: it must be the folder of a CLIP-like model of transformers, "
                "with config.json, its weights as .safetensors and its tokenizer."
            )
        try:
            self._load(folder)
        except Exception as error:  # transformers raises whatever the part that fails raises
            raise ScorerError(f"REG: the scorer in {folder} cannot be loaded ({_first_line(error)}).") from error
        if not all(hasattr(self.model, name) for name in ("get_image_features", "get_text_features")):
            raise ScorerError(
                f"REG: the model in {folder} does not compare texts with pictures: use one of the CLIP family."
            )
        weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors"))
        self.identity = [(folder / "config.json").read_text(encoding="utf-8"), weights]
        self.name = folder.name

    def _load(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoProcessor

        here = dict(local_files_only=True, trust_remote_code=False)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(folder, use_safetensors=True, **here).eval().to(self.device)
        self.processor = AutoProcessor.from_pretrained(folder, **here)

    def pictures(self, pictures: list[np.ndarray]) -> np.ndarray:
        """[height, width, 3] uint8 each -> unit vectors [n, d]."""
        return self._embed(pictures, "images", "get_image_features")

    def texts(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [n, d]; what is longer than the model takes is cut."""
        return self._embed(texts, "text", "get_text_features", padding="max_length", truncation=True)

    def _embed(self, items: list, kind: str, method: str, **options) -> np.ndarray:
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(items), BATCH):
                inputs = self.processor(**{kind: items[start : start + BATCH]}, return_tensors="pt", **options)
                out = getattr(self.model, method)(**inputs.to(self.device))
                out = out if isinstance(out, torch.Tensor) else out.pooler_output  # the one or the other, by version
                found.append(torch.nn.functional.normalize(out.float(), dim=-1).cpu().numpy())
        return np.concatenate(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
