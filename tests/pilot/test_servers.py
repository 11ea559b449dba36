"""Servers that die, answer 500, forget and refuse: nothing is lost or made twice."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from pack.pilot import __main__ as program
from pack.pilot import servers
from pack.pilot.arms import UNGUIDED, Arm, cells
from pack.pilot.dispatch import Dispatch
from pack.pilot.servers import Failed, Lost, Refused, Server
from pack.tests.pilot.fake_comfyui import FakeComfyUI, asked

ARMS = [UNGUIDED, Arm("cfg", 5.0), Arm("ratio", 3.0)]
CELLS = cells(ARMS, ["a", "b"], 3, 0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(servers, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(Server._once.retry, "wait", lambda state: 0.01)


def run(*comfyuis: FakeComfyUI, prompt_of=lambda cell: asked(cell=cell), lanes: int = 2, during=None):
    """Dispatch CELLS over the servers; gives what was kept, and the failures."""
    kept = Counter()

    async def everything():
        addresses = [await comfyui.__aenter__() for comfyui in comfyuis]
        workers = [await Server(address).__aenter__() for address in addresses]
        keep = lambda cell, made: (kept.update([cell]), during and during(kept))  # noqa: E731
        try:
            return await Dispatch(CELLS, workers, prompt_of, keep, lanes).run()
        finally:
            for it in (*workers, *comfyuis):
                await it.__aexit__()

    return kept, asyncio.run(everything())


def test_load_is_bounded_and_everything_made_once():
    comfyuis = [FakeComfyUI() for _ in range(3)]
    kept, failures = run(*comfyuis)
    assert kept == Counter(CELLS) and not failures
    assert sum((c.made for c in comfyuis), Counter()).most_common(1)[0][1] == 1
    assert all(1 <= c.largest_queue <= 2 and c.made for c in comfyuis)
    assert not any(c.records or c.queue for c in comfyuis)


def test_a_dead_servers_work_goes_to_others(caplog):
    def dies(comfyui, request):
        if sum(comfyui.made.values()) >= 3:
            request.transport.abort()
            return web.Response()

    kept, failures = run(FakeComfyUI(dies), FakeComfyUI())
    assert kept == Counter(CELLS) and not failures
    assert caplog.text.count("does not answer") == 1 and "its work goes to others" in caplog.text


def test_a_server_that_answers_500_now_and_then():
    counter = Counter()

    def sometimes(comfyui, request):
        counter[request.path] += 1
        return web.Response(status=500) if counter[request.path] % 3 == 0 else None

    comfyui = FakeComfyUI(sometimes)
    kept, failures = run(comfyui)
    assert kept == Counter(CELLS) and not failures and max(comfyui.made.values()) == 1


def test_a_lost_answer_is_not_made_twice():
    lost = Counter()

    def drops(comfyui, request):
        if request.path == "/prompt" and not lost["prompt"]:
            lost["prompt"] += 1
            asyncio.get_running_loop().create_task(comfyui._prompt(request))  # taken, but the answer never comes
            return web.Response(status=502)

    comfyui = FakeComfyUI(drops)
    kept, failures = run(comfyui, lanes=1)
    assert kept == Counter(CELLS) and not failures


def test_only_500_is_one_sentence():
    with pytest.raises(
        Lost, match=r"^REG: no server is left \(.* answers 500\): start one and run the same command again"
    ):
        run(FakeComfyUI(lambda comfyui, request: web.Response(status=500)))


def test_a_server_that_was_started_anew_has_forgotten():
    def forgets(comfyui, request):
        if sum(comfyui.made.values()) == 2:
            comfyui.queue.clear()
            comfyui.records.clear()
            comfyui.made["restart"] += 1

    kept, failures = run(FakeComfyUI(forgets), FakeComfyUI())
    assert kept == Counter(CELLS) and not failures


def test_a_refused_workflow_ends_the_run():
    with pytest.raises(Refused, match=r"^REG: the ComfyUI at .* refuses the workflow: Loader: Value not in list ckpt"):
        run(FakeComfyUI(), FakeComfyUI(), prompt_of=lambda cell: asked(refuse=True))


def test_a_picture_that_fails_is_tried_twice_and_told():
    comfyui = FakeComfyUI()
    bad = CELLS[4]
    kept, failures = run(comfyui, prompt_of=lambda cell: asked(cell=cell, fail=cell == bad))
    assert kept == Counter(CELLS) - Counter([bad]) and failures == {bad: "KSampler: out of memory"}
    assert sorted(comfyui.made.values())[-1] == 2


def test_seconds_are_the_servers():
    async def one():
        async with FakeComfyUI() as address, Server(f"http://{address}/") as server:
            made = await server.run(asked(a=1))
            with pytest.raises(Failed):
                await server.run(asked(fail=True))
            return made

    assert asyncio.run(one()).seconds == 1.5


def test_stopping_leaves_nothing_in_a_queue():
    async def stopped():
        comfyui = FakeComfyUI()
        async with comfyui as address, Server(address) as server:
            comfyui._finish = lambda *_: None  # never done
            task = asyncio.create_task(server.run(asked(a=1)))
            while not comfyui.queue:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return comfyui.queue

    assert asyncio.run(stopped()) == []


def test_a_server_without_the_pack():
    async def asked():
        trouble = lambda _, request: web.json_response({}) if "object_info" in request.path else None  # noqa: E731
        async with FakeComfyUI(trouble) as address, Server(address) as server:
            await server.node_inputs()

    with pytest.raises(Refused, match="does not have this pack"):
        asyncio.run(asked())


@pytest.fixture
def files(tmp_path):
    """A workflow that can be piloted, and prompts."""
    from pack.tests.pilot.test_workflow import workflow

    (tmp_path / "w.json").write_text(json.dumps(workflow()))
    (tmp_path / "p.txt").write_text("a\nb\n")
    return [str(tmp_path / "w.json"), str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]


def told(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        program.main(arguments)
    return str(stop.value.code)


def test_the_program_tells_in_one_sentence(files, tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(servers, "__file__", str(tmp_path / "pilot" / "servers.py"))
    free = f"127.0.0.1:{servers._free_port()}"
    assert told([*files, "--server", free]).startswith(f"REG: no server answers ({free} does not answer")
    assert told(files).startswith("REG: no ComfyUI was found: give its folder")
    assert "cannot be read" in told([files[0], str(tmp_path / "none.txt")])
    (tmp_path / "empty.txt").write_text("\n")
    assert "has no prompts" in told([files[0], str(tmp_path / "empty.txt")])
    assert told(["watch", str(tmp_path)]).startswith(f"REG: {tmp_path} holds no run of the pilot")
    assert told([*files, "--pictures", "0"]) == "REG: --pictures must be 1 or more, not 0."


def test_a_missing_scorer_is_told_before_anything_is_made(files, tmp_path, monkeypatch):
    comfyui = FakeComfyUI()

    async def ran() -> str:
        async with comfyui as address:
            arguments = program.parser().parse_args(["run", *files, "--server", address, "--scorer", str(tmp_path)])
            with pytest.raises(ValueError, match=r"^REG: there is no scorer in .*config.json"):
                await program._run(arguments)

    asyncio.run(ran())
    assert not comfyui.made


def test_a_whole_run_and_a_second_one_with_one_more_setting(files, tmp_path):
    comfyui = FakeComfyUI()

    async def ran(settings: str) -> str:
        async with comfyui as address:
            arguments = ["run", *files, "--server", address, "--settings", settings, "--pictures", "2"]
            return await program._run(program.parser().parse_args(arguments))

    first = asyncio.run(ran("ratio 3"))
    assert "4 pictures of 2 prompts were made with every setting" in first and sum(comfyui.made.values()) == 12
    asyncio.run(ran("ratio 3; ratio 5"))
    assert sum(comfyui.made.values()) == 16 and max(comfyui.made.values()) == 1
    assert (Path(files[3]) / "pilot.html").exists()
