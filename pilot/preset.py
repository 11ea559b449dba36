"""A preset: one guidance setting in a small JSON file that people can read, keep and share."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .arms import Arm

FORMAT, VERSION = "reg-preset", 1
LARGEST = 100_000  # bytes of a file that could be a preset
RECTIFIERS = ("REGModel", "REGGuider", "REGAutoGuider", "REGSampler")  # the nodes that take a preset
OPTIONS = {  # what a preset may set, and within which limits
    "rectification": str,
    "estimator": ("auto", "backward", "difference"),
    "strength": (0.0, 4.0),
    "start_percent": (0.0, 1.0),
    "end_percent": (0.0, 1.0),
    "every": (0, 100),
    "step": (0.0, 1.0),
    "checkpoint": ("auto", "always", "off"),
    "verify": bool,
}


class PresetError(ValueError):
    """The file is no preset that can be used; the message says why."""


@dataclass(frozen=True)
class Preset:
    """A guidance setting: cfg, options of the REG nodes, and where it comes from."""

    cfg: float
    options: dict
    model: str = ""
    evidence: str = ""  # the pilot's paragraph
    made: dict = field(default_factory=dict)  # versions, date, number of pictures

    def __post_init__(self):
        """Raises PresetError: a value is none that a REG node takes."""
        if not _is_number(self.cfg) or not 1 <= self.cfg <= 100:
            raise PresetError(f"REG: the preset's cfg must be a number from 1 to 100, not {self.cfg!r}.")
        for name, value in self.options.items():
            _check(name, value)

    def scaled(self, share: float) -> "Preset":
        """The same with a share of its strength, for a roll-out in stages: 0 is plain CFG."""
        return Preset(
            self.cfg,
            {**self.options, "strength": share * self.options.get("strength", 1.0)},
            self.model,
            self.evidence,
            self.made,
        )

    @classmethod
    def of(cls, arm: Arm, options: dict, **about) -> "Preset":
        """An arm's setting; `options` are those that its REG node had besides."""
        return cls(arm.cfg, {**options, **arm.node_options()}, **about)

    def text(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def options(preset: Preset) -> dict:
    """Keyword options of the REG nodes and of `guiders.options.Options`; what is not named keeps the node's own value."""
    return dict(preset.options)


def load(path: Path) -> Preset:
    """Read a preset. Raises PresetError: it cannot be read, or is none."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise PresetError(f"REG: {path.name} is too large for a preset.")
        return parse(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise PresetError(f"REG: the preset {path.name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PresetError(f"REG: {path.name} is no preset: it is not UTF-8 text.") from error


def parse(text: str, name: str = "the preset") -> Preset:
    """Raises PresetError: the text is no preset, or one of a newer version."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PresetError(f"REG: {name} is no preset: it is not JSON ({error}).") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PresetError(f'REG: {name} is no preset: a preset begins with "format": "{FORMAT}".')
    if data.get("version") != VERSION:
        raise PresetError(
            f"REG: {name} is a preset of version {data.get('version')!r}, and this pack reads {VERSION}: update it."
        )
    known = {"cfg": None, "options": dict, "model": str, "evidence": str, "made": dict}
    for key, kind in known.items():
        if kind and key in data and not isinstance(data[key], kind):
            raise PresetError(f"REG: {key} in {name} must be a {kind.__name__}.")
    if "cfg" not in data or "options" not in data:
        raise PresetError(f"REG: {name} has no cfg or no options.")
    return Preset(**{key: data[key] for key in known if key in data})


def _check(name: str, value) -> None:
    """Raises PresetError: a REG node has no such option, or it takes other values."""
    if name not in OPTIONS:
        raise PresetError(f"REG: the preset sets {name!r}, which no REG node has or a preset must not set.")
    allowed = OPTIONS[name]
    if isinstance(allowed, type):
        fits, wanted = isinstance(value, allowed), {str: "a word", bool: "true or false"}[allowed]
    elif isinstance(allowed[0], str):
        fits, wanted = value in allowed, "one of " + ", ".join(allowed)
    else:
        whole = isinstance(allowed[0], int)
        fits = _is_number(value) and allowed[0] <= value <= allowed[1] and (not whole or value == int(value))
        wanted = f"a{' whole' if whole else ''} number from {allowed[0]:g} to {allowed[1]:g}"
    if not fits:
        raise PresetError(f"REG: the preset's {name} must be {wanted}, not {value!r}.")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
