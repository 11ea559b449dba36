"""A server that fails is explained, and gone when its block ends. Small scripts play ComfyUI."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from pack.devtools import server

CRASHES = "raise SystemExit('a library is missing')"
CRASHES_AT_WORK = """
import http.server, sys, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/system_stats":
            self.send_response(200); self.end_headers()
        else:
            print("out of memory", file=sys.stderr, flush=True); os._exit(1)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
HANGS_WITH_A_CHILD = """
import subprocess, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a server out of the text of a main.py; gives the server once it fails to start."""

    def start(main: str) -> server.Server:
        (tmp_path / "main.py").write_text(main)
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
        return server.Server(tmp_path / "run")

    return start


def is_running(pid: int) -> bool:
    """A process that has ended but not been waited for counts as gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_crash_at_the_start_is_explained_by_the_log(start):
    with pytest.raises(server.ServerError, match="a library is missing"), start(CRASHES):
        pass


def test_a_crash_at_work_is_explained_by_the_log(start, monkeypatch):
    monkeypatch.setattr(server, "Client", lambda address: SimpleNamespace(url=f"http://{address}", close=lambda: None))
    with pytest.raises(server.ServerError, match="out of memory"), start(CRASHES_AT_WORK) as client:
        requests.get(f"{client.url}/prompt", timeout=5)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_a_hanging_server_is_ended_with_its_children(start, monkeypatch):
    monkeypatch.setattr(server, "START_SECONDS", 6)  # in which a busy machine starts two Pythons
    monkeypatch.setattr(server, "STOP_SECONDS", 0.5)
    comfyui = start(HANGS_WITH_A_CHILD)
    with pytest.raises(server.ServerError, match="did not answer"), comfyui:
        pass
    child = int(comfyui.log.read_text().split()[0])
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(comfyui.process.pid)
    assert not is_running(child)
