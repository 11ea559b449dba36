"""Scores of a small CLIP, made here, are those that the model itself gives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="needs ComfyUI: python3 dev.py test")

import transformers

from pack.pilot import collect, measures
from pack.pilot.arms import UNGUIDED, Arm, Cell, address, cells
from pack.pilot.scorer import Scorer, ScorerError
from pack.pilot.store import Store

PICTURES = list(np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8))
TEXTS = ["a cat", "a dog", "red", "x", "y" * 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP with random weights, in the files that people have."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ends = dict(bos_token_id=len(letters), eos_token_id=len(letters) + 1, pad_token_id=len(letters) + 1)
    text = dict(**sizes, **ends, vocab_size=len(vocabulary), max_position_embeddings=16)
    vision = dict(**sizes, image_size=32, patch_size=8)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else None
    images = (processor or transformers.CLIPImageProcessor)(size={"shortest_edge": 32}, crop_size=32)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer(folder)


@torch.inference_mode()
def test_cosines_are_the_models_own(folder, scorer):
    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    images = [Image.fromarray(picture) for picture in PICTURES]
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True)
    expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    found = scorer.pictures(PICTURES) @ scorer.texts(TEXTS).T
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_agreement_questions_and_nearness_follow_from_it(tmp_path, scorer):
    arms, prompts = [UNGUIDED, Arm("cfg", 5.0)], ["a cat", "a dog"]
    name = lambda cell: address(cell.arm.as_json(), cell.prompt, cell.seed)  # noqa: E731
    made = cells(arms, prompts, 3, 0)
    with Store(tmp_path) as store:
        for i, cell in enumerate(made):
            store.put(name(cell), np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8), {})
        questions = [["a man", "a woman", "x"]]
        table = collect.table(store, arms, made, name, scorer, PICTURES * 3, questions)
        again = collect.table(store, arms, made, name, scorer, PICTURES * 3, questions)  # from what was kept
        pictures = [store.picture(name(Cell(arms[1], *unit))) for unit in table.units]
    assert (table.features["embedding"] == again.features["embedding"]).all()
    cosines = scorer.pictures(pictures) @ scorer.texts(prompts).T
    found = {m.name: m.estimate(1, 0.95).value for m in measures.measures(table)}
    by_hand = np.mean([cosines[i, prompts.index(prompt)] for i, (prompt, _) in enumerate(table.units)])
    assert found["score"] == pytest.approx(100 * by_hand, rel=1e-4)
    assert {"kid", "fid", "precision", "recall", "variety embedding"} <= found.keys()
    ((text, rows),) = measures.shares(table)
    best = (scorer.pictures(pictures) @ scorer.texts(questions[0]).T).argmax(1)
    assert text == "a man | a woman | x"
    assert [row.estimate(1, 0.95).value for row in rows] == pytest.approx([100 * np.mean(best == i) for i in range(3)])


def test_folders_that_hold_no_scorer(tmp_path, folder):
    with pytest.raises(
        ScorerError, match=r"^REG: there is no scorer in .*: it must be the folder of a CLIP-like model"
    ):
        Scorer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ScorerError, match=r"^REG: the scorer in .* cannot be loaded \(") as error:
        Scorer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_model_that_knows_no_texts(tmp_path, folder):
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    for file in folder.glob("*processor*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ScorerError, match=r"^REG: "):
        Scorer(tmp_path)
