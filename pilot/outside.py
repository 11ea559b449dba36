"""The pilot from outside: a workflow's pictures, made by servers, measured here."""

import contextlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from . import arms, session
from .arms import Cell
from .dispatch import Dispatch
from .servers import Lost, Made, OwnServer, Server, find_comfyui
from .store import Store
from .workflow import Prompt, Workflow

log = logging.getLogger(__name__)

PLAN = "plan.json"
NOT_SET = ("profile", "schedule", "preset")  # inputs of a REG node that no line of text can give


@dataclass
class Setup:
    """What a run was asked for; it is kept in its folder, and `watch` runs it again."""

    workflow: Prompt
    prompts: list[str]
    settings: str
    cfg: float | None = None  # of the baseline; None takes the workflow's
    pictures: int = 8
    seed: int = 0
    scorer: str = ""
    references: str = ""
    questions: list[list[str]] = field(default_factory=list)
    margin: float = session.MARGIN
    prompt_node: str = ""
    prompt_input: str = ""
    output_node: str = ""

    def opened(self) -> Workflow:
        return Workflow(self.workflow, self.prompt_node, self.prompt_input, self.output_node)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, folder: Path) -> "Setup":
        """Raises ValueError: no run of the pilot was made in this folder."""
        try:
            return cls(**json.loads((folder / PLAN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"REG: {folder} holds no run of the pilot: {PLAN} is missing or damaged.") from error


@dataclass
class Places:
    """Where pictures are made."""

    servers: list[str] = field(default_factory=list)
    ray: str = ""
    workers: int = 0
    gpus: float = 1.0
    comfyui: str = ""
    comfyui_options: str = ""
    lanes: int = 2

    @contextlib.asynccontextmanager
    async def opened(self, log_file: Path):
        """The workers. Without an address, a ComfyUI of our own."""
        async with contextlib.AsyncExitStack() as stack:
            if self.ray:
                from . import cluster

                comfyui = find_comfyui(self.comfyui)
                yield cluster.connect(self.ray, self.workers, self.gpus, comfyui, self.comfyui_options)
                return
            addresses = self.servers
            if not addresses:
                own = OwnServer(find_comfyui(self.comfyui), self.comfyui_options, log_file)
                addresses = [stack.enter_context(own).address]
            yield [await stack.enter_async_context(Server(address)) for address in addresses]


async def run(setup: Setup, places: Places, folder: Path, title: str) -> session.Answer:
    """Make what is missing, and answer.

    Raises:
        ValueError: something that was given is wrong.
        RuntimeError: servers, pictures or the folder fail; the message is one sentence.
    """
    workflow = setup.opened()
    with Store(folder) as store:
        store.keep_text(folder / PLAN, setup.text())
        async with places.opened(folder / "comfyui.log") as workers:
            plan = _plan(setup, workflow, await _first_answer(workers))
            name = lambda cell: arms.address(workflow.of(cell))  # noqa: E731
            failures = await _make(store, plan.cells, workers, workflow, name, places.lanes)
            _tell(failures)
        facts = [("servers", ", ".join(worker.name for worker in workers))]
        return session.answer(store, plan, name, title, workflow.model, facts, workflow.options)


def _tell(failures: dict[Cell, str]) -> None:
    for cell, reason in list(failures.items())[:3]:
        log.warning("REG: no picture of %s, %r, seed %d: %s", cell.arm.label, cell.prompt[:40], cell.seed, reason)
    if failures:
        log.warning("REG: %d pictures could not be made; the same command tries them again.", len(failures))


async def _make(
    store: Store, cells: list[Cell], workers, workflow: Workflow, name: Callable, lanes: int
) -> dict[Cell, str]:
    missing = list(
        {name(cell): cell for cell in cells if not store.has(name(cell))}.values()
    )  # settings may mean the same
    with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="picture") as bar:

        def keep(cell: Cell, made: Made) -> None:
            with Image.open(io.BytesIO(made.content)) as image:
                picture = np.asarray(image.convert("RGB"))
            store.put(name(cell), picture, {"seconds": made.seconds})
            bar.update()

        return await Dispatch(missing, workers, workflow.of, keep, lanes).run()


async def _first_answer(workers) -> dict:
    """What the first server that answers says of the REG node. Raises Lost: none answers."""
    reasons = []
    for worker in workers:
        try:
            return await worker.node_inputs()
        except Lost as error:
            reasons.append(str(error))
    raise Lost(f"REG: no server answers ({'; '.join(reasons)}): start ComfyUI there, or give another address.")


def _plan(setup: Setup, workflow: Workflow, inputs: dict) -> session.Plan:
    known = {**inputs.get("required", {}), **inputs.get("optional", {})}
    kind, *rest = known["rectification"]
    rules = kind if isinstance(kind, list) else rest[0]["options"]
    cfg = setup.cfg or workflow.cfg
    if not cfg or cfg <= 1:
        raise ValueError(
            "REG: the workflow's cfg is not above 1, so that nothing is guided: say with --cfg what you use."
        )
    options = [key for key in known if key not in ("model", *NOT_SET)]
    return session.plan(
        arms.parse_arms(setup.settings, [*arms.NAMES, *rules], options),
        cfg,
        setup.scorer,
        setup.references,
        setup.questions,
        prompts=setup.prompts,
        pictures=setup.pictures,
        seed=setup.seed,
        margin=setup.margin,
    )
