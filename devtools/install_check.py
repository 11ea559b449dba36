"""Install the pack in every way users do, with the real programs: comfy-cli, ComfyUI-Manager and a plain copy.

Works on what is committed, in a temporary folder, offline. Each line that is printed was checked.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
import zipfile
from functools import partial
from pathlib import Path

from . import workflow
from .client import Client
from .server import PACK, Server
from .shipped import shipped

PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]
NAME, VERSION = PROJECT["name"], PROJECT["version"]
COPY = "ComfyUI-REG"  # the folder's name
MANAGER = ("--enable-manager",)
TEMPLATES = sorted(path.stem for path in PACK.glob("workflows/*.json"))
BLUEPRINT = "CFG beside REG"
HELP = PACK / "web" / "docs" / "REGModel" / "en.md"
FEW = {"steps": 3, "batch_size": 1}  # whether it draws shows in a few
PATIENCE = 60  # seconds that the Manager gets for a task


class CheckError(Exception):
    """Something is not as it must be; the message says what."""


def check(condition: bool, what: str, found: object = "") -> None:
    if not condition:
        raise CheckError(f"NOT SO: {what} {found}")
    print(f"  {what}", flush=True)


def comfy(source: Path, *arguments: str) -> str:
    """Run comfy-cli in a folder; gives what it prints."""
    command = [str(Path(sys.executable).parent / "comfy"), "--skip-prompt", "--no-enable-telemetry", *arguments]
    home = source.parent / "home"  # comfy-cli keeps its settings there
    environment = os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    print(f"$ comfy {' '.join(arguments)}", flush=True)
    check(done.returncode == 0, "comfy-cli is content", done.stdout + done.stderr)
    return done.stdout + done.stderr


def validate_and_pack(source: Path) -> Path:
    """What a release does before it uploads; gives the archive."""
    check("All validation checks passed" in comfy(source, "node", "validate"), "no warning by the registry's checks")
    comfy(source, "node", "pack")
    archive = source / "node.zip"
    packed = set(zipfile.ZipFile(archive).namelist())
    check(packed == set(shipped(source)), "the archive holds what .comfyignore leaves", packed ^ set(shipped(source)))
    print(f"  {len(packed)} files, {archive.stat().st_size / 1e6:.1f} MB", flush=True)
    return archive


def unpack(archive: Path, base: Path) -> None:
    """As the Manager installs a pack of the registry: unpacked under its name, with a list of its files."""
    pack = base / "custom_nodes" / NAME
    with zipfile.ZipFile(archive) as files:
        files.extractall(pack)
        (pack / ".tracking").write_text("\n".join(files.namelist()))


def works(client: Client, title: str) -> None:
    """The pack of a running server does what it is for."""
    prompt = workflow.load(PACK / "workflows" / "demo.json", client.object_info())
    for node in prompt.values():
        node["inputs"] |= {name: few for name, few in FEW.items() if name in node["inputs"]}
    outputs = client.wait(client.queue(prompt))
    check(any("images" in output for output in outputs.values()), "the demo template draws")
    templates = client._get("/api/workflow_templates").json()
    check(sorted(templates.get(title, [])) == TEMPLATES, f"{len(TEMPLATES)} templates are offered", templates)
    for name, kind in itertools.product(TEMPLATES, ("json", "jpg")):
        client._get(f"/api/workflow_templates/{title}/{name}.{kind}")
    check(True, "each is served with its thumbnail")
    blueprints = [entry["name"] for entry in client._get("/global_subgraphs").json().values()]
    check(BLUEPRINT in blueprints, "the blueprint is offered", blueprints)
    page = client._get(f"/extensions/{title}/docs/REGModel/en.md").text
    check(page == HELP.read_text(encoding="utf-8"), "the help page is served", page[:80])


def nodes(client: Client) -> list[str]:
    return [name for name in client.object_info() if name.startswith("REG")]


def check_copy(source: Path, base: Path) -> None:
    shutil.copytree(source, base / "custom_nodes" / COPY, ignore=shutil.ignore_patterns(".git", "node.zip"))
    with Server(base, COPY) as client:
        works(client, COPY)


def check_archive(archive: Path, base: Path) -> None:
    unpack(archive, base)
    with Server(base, NAME) as client:
        works(client, NAME)


class Manager:
    """ComfyUI-Manager's own interface in a running server, as its page uses it."""

    def __init__(self, client: Client):
        self.client = client

    def pack(self) -> dict:
        """What it knows of the one pack there is."""
        installed = self.client._get("/v2/customnode/installed").json()
        return next(iter(installed.values()), {})

    def enable(self, on: bool, name: str, from_registry: bool) -> None:
        """Enable or disable, again where it did nothing: just after its start the Manager may not know the pack yet."""
        switched_off = {"node_name": name, "is_unknown": not from_registry}
        kind, parameters = ("enable", {"cnr_id": name}) if on else ("disable", switched_off)
        deadline = time.monotonic() + PATIENCE
        while self.pack()["enabled"] != on and time.monotonic() < deadline:
            self._finish(kind, parameters, deadline)
        check(self.pack()["enabled"] == on, f"{kind}d", self.pack())

    def _finish(self, kind: str, parameters: dict, deadline: float) -> None:
        """Queue a task and wait for its end, as the page does: the list shows a pack as moved while its folder is removed."""
        task = {"ui_id": uuid.uuid4().hex, "client_id": "install-check", "kind": kind, "params": parameters}
        self._post("queue/task", task)
        while not self.client._get(f"/v2/manager/queue/history?ui_id={task['ui_id']}").json()["history"]:
            if time.monotonic() > deadline:
                raise CheckError(f"NOT SO: the Manager ends the task '{kind}' within {PATIENCE} s")
            self._post("queue/start")
            time.sleep(0.5)

    def _post(self, path: str, body: dict | None = None) -> None:
        self.client.session.post(f"{self.client.url}/v2/manager/{path}", json=body).raise_for_status()


def without_network(base: Path) -> Path:
    """A ComfyUI folder whose Manager asks nothing of the network."""
    settings = base / "user" / "__manager" / "config.ini"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nnetwork_mode = offline\n")
    return base


def check_managed_archive(archive: Path, base: Path) -> None:
    """As installed from the registry. Enabling it again takes the registry's list, which names what is published."""
    unpack(archive, base)
    with Server(base, None, MANAGER) as client:
        manager = Manager(client)
        expected = {"ver": VERSION, "cnr_id": NAME, "aux_id": None, "enabled": True}
        check(manager.pack() == expected, f"listed as installed: {expected}", manager.pack())
        works(client, NAME)
        manager.enable(False, NAME, from_registry=True)
    with Server(base, None, MANAGER) as client:
        check(nodes(client) == [], "no node of it after a restart", nodes(client))


def clone(origin: Path, folder: Path) -> None:
    """As from its public place."""
    run = partial(subprocess.run, check=True)
    run(["git", "clone", "--quiet", str(origin), str(folder)])
    run(["git", "-C", str(folder), "remote", "set-url", "origin", PROJECT["urls"]["Repository"]])


def check_managed_clone(source: Path, base: Path) -> None:
    clone(source, base / "custom_nodes" / COPY)
    with Server(base, None, MANAGER) as client:
        manager = Manager(client)
        check(manager.pack().get("enabled") is True, f"listed as installed: {manager.pack()}")
        manager.enable(False, COPY, from_registry=False)
    with Server(base, None, MANAGER) as client:
        check(nodes(client) == [], "no node of it after a restart", nodes(client))
        Manager(client).enable(True, COPY, from_registry=False)
    with Server(base, None, MANAGER) as client:
        works(client, COPY)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the demo: on a busy machine threads wait for each other
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "source"
        clone(PACK, source)
        try:
            archive = validate_and_pack(source)
            print("A copy of the checkout in custom_nodes", flush=True)
            check_copy(source, folder / "copy")
            print("The archive, unpacked in custom_nodes", flush=True)
            check_archive(archive, folder / "archive")
            print("ComfyUI-Manager, the archive", flush=True)
            check_managed_archive(archive, without_network(folder / "managed archive"))
            print("ComfyUI-Manager, a clone", flush=True)
            check_managed_clone(source, without_network(folder / "managed clone"))
        except CheckError as error:
            sys.exit(str(error))
    print("All is well.")


if __name__ == "__main__":
    main()
