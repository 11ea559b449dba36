"""The environment's set-up: what it skips, resumes, and says. Nothing is installed here."""

import subprocess
import sys
import threading

import pytest

from pack.devtools import environment


@pytest.fixture
def made(tmp_path, monkeypatch):
    """An environment in a folder of its own whose stages only write down that they ran."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "GIGABYTES_NEEDED", 0)
    ran = []

    def make_venv(self):
        ran.append("venv")
        self.python.parent.mkdir(parents=True)
        self.python.touch()

    monkeypatch.setattr(environment.Environment, "make_venv", make_venv)
    monkeypatch.setattr(environment.Environment, "fetch_comfyui", lambda self: ran.append("comfyui"))
    monkeypatch.setattr(environment.Environment, "install", lambda self, file, *options: ran.append(file.stem))
    return ran


def test_stages_run_once(made):
    assert environment.prepare() == environment.prepare()
    assert made == ["venv", "comfyui", "torch", "torchaudio", "requirements"]


def test_a_command_adds_only_its_own_stage(made):
    environment.prepare()
    environment.prepare("install-check")
    assert made.count("torch") == 1
    assert made[-1] == "install-check"


def test_an_interrupted_set_up_goes_on(made, monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environment.Environment, "fetch_comfyui", fail)
        environment.prepare()
    environment.prepare()
    assert made == ["venv", "comfyui", "torch", "torchaudio", "requirements"]


def test_a_comfyui_of_the_users_own_is_not_fetched(made, monkeypatch, tmp_path):
    own = tmp_path / "mine"
    own.mkdir()
    (own / "main.py").touch()
    (own / "requirements.txt").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    assert environment.prepare()[1] == own
    assert "comfyui" not in made


def test_two_set_ups_take_turns(tmp_path):
    entered = threading.Event()

    def second():
        with environment.exclusive(tmp_path / "lock"):
            entered.set()

    with environment.exclusive(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()


def test_what_is_missing_is_said(made, monkeypatch, tmp_path):
    error = subprocess.CalledProcessError(1, "pip", stderr="NewConnectionError(...)")
    assert "network" in environment.explain("PyTorch", error, tmp_path)
    monkeypatch.setattr(environment, "GIGABYTES_NEEDED", 10**9)
    with pytest.raises(environment.SetupError, match="XDG_CACHE_HOME"):
        environment.prepare()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(environment.SetupError, match="not ComfyUI's folder"):
        environment.prepare()
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(environment.SetupError, match="venv or pip"):
        environment.prepare()
