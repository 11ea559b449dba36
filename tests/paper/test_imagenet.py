"""The command: a tiny model sampled and judged over a grid, gone on with, and spread over a cluster that loses a worker."""

import argparse
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import numpy as np
import psutil
import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.taesd.taesd import TAESD
from scipy.linalg import sqrtm
from torch_fidelity import feature_extractor_inceptionv3

from pack.research.imagenet import batches, command, features, metrics, remote, report
from pack.tests.paper import authors_pickle, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An EDM2 on pixels, one without classes, and a reference."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name, changes in {"edm2": {}, "uncond": {"classes": 0, "seed": 3}, "weak": {"seed": 5}}.items():
        tiny.save(tiny.edm2_state(in_channels=3, channels=(64, 64), **changes), folder / f"{name}.safetensors")
    tiny.save(tiny.dit_state(), folder / "dit.pt")
    tiny.save(tiny.edm2_state(channels=(64, 64)) | tiny.encoder(), folder / "latents.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048), arr_0=pictures)
    return folder


@pytest.fixture(scope="module")
def vae(folder):
    """A VAE of Stable Diffusion's latents: of the small kind (TAESD), random, with pictures around grey."""
    network = TAESD(latent_channels=4)
    state = {
        f"taesd_{part}.{name}": value
        for part in ("encoder", "decoder")
        for name, value in getattr(network, f"taesd_{part}").state_dict().items()
    }
    numbers = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(value.shape, generator=numbers) for name, value in state.items()}
    tiny.save(state | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def options(folder, *more, out="out") -> argparse.Namespace:
    files = [
        f"--{name}={folder / file}" for name, file in (("model", "edm2.safetensors"), ("uncond", "uncond.safetensors"))
    ]
    words = ["dev.py", "run", *files, f"--reference={folder / 'reference.npz'}", f"--out={folder / out}"]
    words += ["--features=tiny", "--pictures=10", "--batch=4", "--steps=3", "--scales", "1", "2", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        return command.parse()


def test_a_grid_is_sampled_judged_and_gone_on_with(folder, monkeypatch):
    page = command.run(options(folder))
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[:3] for line in table] == [
        [f"| {rule}", scale, "10"] for rule in ("original", "reg_original") for scale in ("1", "2")
    ]
    assert page.with_suffix(".png").is_file() and page.with_suffix(".csv").is_file()
    kept = {file: file.read_bytes() for file in folder.glob("out/batches/*/*")}
    assert len(kept) == 4 * 3
    first = next(iter(kept))
    first.unlink()
    sampled = []
    monkeypatch.setattr(command, "sample", lambda batch: sampled.append(batch) or batches.sample(batch))
    command.run(options(folder))
    assert len(sampled) == 1 and first.read_bytes() == kept[first]


@pytest.mark.parametrize("system", ["edm2", "dit"])
def test_another_size_of_batch_draws_the_same_pictures(folder, vae, system):
    more = [] if system == "edm2" else ["--uncond=", f"--vae={vae}", "--model", str(folder / "dit.pt")]
    grid = [command.cells(options(folder, f"--batch={size}", *more))["reg_original", 2.0] for size in (4, 10)]
    parts, (whole,) = ([batches.pictures_of(batch) for batch in some] for some in grid)
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1


def test_only_inception_needs_no_pictures_of_the_reference(folder):
    np.savez(folder / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"REG: this reference has no pictures \(arr_0\)"):
        command.run(options(folder, "--reference", str(folder / "statistics.npz")))


def test_the_address_is_of_all_that_the_pictures_depend_on(folder):
    def addresses(*more):
        return {batch.address() for cell in command.cells(options(folder, *more)).values() for batch in cell}

    plain, changed = addresses(), folder / "changed.safetensors"
    tiny.save(tiny.edm2_state(in_channels=3, channels=(64, 64), seed=9), changed)
    assert plain == addresses("--weak", str(folder / "weak.safetensors"))  # which none of the rules looks at
    for more in (["--steps=4"], ["--dtype=float32"], ["--model", str(changed)], ["--uncond", str(changed)]):
        assert not plain & addresses(*more)


def test_the_measures_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 6, generator=generator), 1.3 * torch.randn(200, 6, generator=generator) + 0.3
    logits = torch.randn(300, 5, generator=generator)
    reference = metrics.Reference(b.double().mean(0).numpy(), np.cov(b.double().numpy(), rowvar=False))
    found = metrics.judge(a, logits, reference, b)
    s, t = np.cov(a.double().numpy(), rowvar=False), reference.sigma
    fid = ((a.double().mean(0).numpy() - reference.mu) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert found["FID"] == pytest.approx(fid, rel=1e-6)

    def covered(points, by):
        """The share of points within the distance of the third neighbour of any of the others."""
        radius = torch.cdist(by, by).sort(1).values[:, 3]
        return (torch.cdist(points, by) <= radius).any(1).float().mean().item()

    assert found["precision"] == pytest.approx(covered(a, b)) and found["recall"] == pytest.approx(covered(b, a))
    certain = 100 * torch.nn.functional.one_hot(torch.arange(3000) % 5).float()
    assert metrics.judge(a, certain, reference, None)["IS"] == pytest.approx(5, abs=0.1)
    assert metrics.judge(a, torch.ones(300, 5), reference, None)["IS"] == pytest.approx(1)
    assert np.isnan(metrics.judge(a, logits, reference, None)["precision"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"mu": np.zeros(3)}, "is no reference of ADM's .*it needs mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"has mu \(3,\) and sigma \(2, 2\), which do not fit"),
        ({"mu": np.array([{}, 1]), "sigma": np.eye(2)}, "is no reference of ADM's .*allow_pickle"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "arr_0": np.zeros((4, 3, 8, 8))}, "arr_0 of .* is float64"),
    ],
)
def test_a_reference_that_is_none(tmp_path, content, words):
    np.savez(tmp_path / "reference.npz", **content)
    with pytest.raises(ValueError, match=f"^REG: .*{words}"):
        metrics.read_reference(tmp_path / "reference.npz")


def test_inceptions_features(monkeypatch):
    """torch-fidelity's network, without its weights: what it gives, in which order, and what is said where it cannot be had."""
    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **kwargs: {})
    network, made = feature_extractor_inceptionv3.FeatureExtractorInceptionV3, []
    with monkeypatch.context() as without_weights:
        without_weights.setattr(network, "load_state_dict", lambda self, state: made.append(self))
        extract = features.inception()
    found, logits = extract(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    assert found.shape == (2, 2048) and logits.shape == (2, 1008)
    torch.testing.assert_close(logits, found @ made[0].fc.weight.cpu().T, rtol=1e-4, atol=1e-5)

    def unreachable(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError, match="REG: torch-fidelity could not download Inception"):
        features.inception()


def test_a_reference_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"REG: there is no reference .*docs/imagenet.md"):
        metrics.read_reference(tmp_path / "none.npz")


def test_a_reference_of_another_network():
    reference = metrics.Reference(np.zeros(2048), np.eye(2048))
    with pytest.raises(ValueError, match="REG: the reference has 2048 features and the samples have 16"):
        metrics.judge(torch.zeros(4, 16), torch.zeros(4, 8), reference, None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rules", "sine"], '"sine" is no rule'),
        (["--rules", "reg_autog"], "name it with --weak"),
        (["--vae", "nothing.safetensors"], "--vae names nothing.safetensors, and there is no such file"),
        (["--pictures", "1"], "--pictures must be 2 or more"),
    ],
)
def test_options_that_make_no_sense(folder, more, words):
    with pytest.raises(ValueError, match=f"^REG: .*{words}"):
        command.cells(options(folder, *more))


def test_latents_need_a_vae(folder):
    (batch, *_), *_ = command.cells(options(folder, "--model", str(folder / "dit.pt"))).values()
    with pytest.raises(ValueError, match=r"REG: dit.pt works on latents: name the file of its VAE with --vae"):
        batches.sample(batch)


@pytest.mark.parametrize(("file", "brightest"), [("dit.pt", "rounded"), ("latents.safetensors", "cut off")])
def test_pictures_are_the_authors(folder, vae, monkeypatch, file, brightest):
    """DiT: 127.5 x + 128, cut off, of a VAE on −1 to 1. EDM2: 255 x, cut off, of the same VAE taken for one on 0 to 1."""
    decoded = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2.4 - 1.2
    monkeypatch.setattr(TAESD, "decode", lambda self, latent: decoded.clone())
    more = ["--uncond=", f"--vae={vae}", "--model", str(folder / file), "--dtype=float32"]
    batch, *_ = command.cells(options(folder, *more))["original", 1.0]
    values = 127.5 * decoded + 128 if brightest == "rounded" else 255 * decoded
    expected = values.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(batches.pictures_of(batch).astype(int) - expected).max() <= 1
    assert (batches.pictures_of(batch) == expected).mean() > 0.999


def test_autoguidance(folder):
    cells = command.cells(options(folder, "--weak", str(folder / "weak.safetensors"), "--rules", "autog", "reg_autog"))
    autog, rectified = (batches.pictures_of(cells[rule, 2.0][0]) for rule in ("autog", "reg_autog"))
    assert autog.shape == rectified.shape == (4, 8, 8, 3) and (autog != rectified).any()


def test_the_command_converts(tmp_path, monkeypatch, capsys):
    state = {name: value.half() for name, value in tiny.edm2_state(in_channels=3).items()}
    path = authors_pickle.write(tmp_path / "edm2.pkl", state)
    monkeypatch.setattr(sys, "argv", ["dev.py", "convert", str(path)])
    assert command.main() is None and Path(capsys.readouterr().out.strip()).name == "edm2.safetensors"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert command.main().startswith("REG: edm2.pkl asks for os.system")


def test_what_was_published_stands_beside():
    rows = [{"rule": "original", "scale": 1.4, "pictures": 50_000, **dict.fromkeys(metrics.COLUMNS, 2.5)}]
    assert "Published for this checkpoint: FID 2.23 (guidance: CFG, cfg 1.4)" in report.text(
        "edm2-img512-s-2147483-0.025", "", rows
    )
    assert "No published number" in report.text("mine", "", rows)


def kill_a_worker(killed: list[psutil.Process], patience: float = 120.0) -> None:
    """Kill the first process that is at a batch; the cluster is this process's own."""
    end = time.monotonic() + patience
    while not killed and time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if not killed and process.name().startswith("ray::sample"):
                    process.kill()
                    killed.append(process)
        time.sleep(0.01)


def test_a_worker_that_dies_loses_nothing(folder):
    """Its batch is made again, the same to the bit."""
    todo, killed = command.cells(options(folder))["reg_original", 1.0], []
    killer = threading.Thread(target=kill_a_worker, args=(killed,), daemon=True)
    killer.start()
    found = dict(command.results(todo, "local"))
    killer.join(1)
    assert killed and found.keys() == set(todo)
    for batch in todo:
        here = batches.sample(batch)
        assert all(np.array_equal(found[batch].__dict__[name], value) for name, value in vars(here).items())


def test_a_cluster_that_is_not_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(
            remote.Trouble, match=f"REG: there is no Ray cluster at 127.0.0.1:{port} .*ray start --head"
        ):
            next(remote.run([{}], f"127.0.0.1:{port}"))
