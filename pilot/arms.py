"""What is compared, as plain data: arms, prompts and seeds; and a name for each picture that follows from how it is made."""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from itertools import product

NAMES = ("elementwise", "jacobian", "ratio")  # of REG's rules, which nodes take beside the labels that they show
BETWEEN_ANSWERS = re.compile(r"\s/\s|\|")
NONE, CFG = "none", "cfg"  # rules that need no REG node: without guidance, and guided as ComfyUI does


@dataclass(frozen=True, order=True)
class Arm:
    """One way of guiding: a rule at one cfg, with options of the REG node that differ from the node's defaults."""

    rule: str
    cfg: float
    options: tuple[tuple[str, str | float | int | bool], ...] = ()

    @property
    def label(self) -> str:
        if self.rule == NONE:
            return "no guidance"
        name = "CFG" if self.rule == CFG else self.rule
        return " ".join([f"{name} {self.cfg:g}", *(f"{key}={_shown(value)}" for key, value in self.options)])

    def node_options(self) -> dict:
        """What a REG node is set to; plain CFG is REG with strength 0."""
        if self.rule in (NONE, CFG):
            return {"strength": 0.0}
        return {"rectification": self.rule, "strength": 1.0, **dict(self.options)}

    def as_json(self) -> dict:
        return {"rule": self.rule, "cfg": self.cfg, "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: dict) -> "Arm":
        return cls(data["rule"], float(data["cfg"]), tuple(sorted(data["options"].items())))


UNGUIDED = Arm(NONE, 1.0)


@dataclass(frozen=True)
class Cell:
    """One picture to be made."""

    arm: Arm
    prompt: str  # its text, or its name where it is no text
    seed: int


def parse_arms(text: str, rules: list[str], options: list[str]) -> list[Arm]:
    """Arms from lines such as `ratio 3 5 8 strength=0.5`: a rule, the cfg values, options of the REG node. A ; ends a line.

    Raises:
        ValueError: a line cannot be understood; the message names it and what would be right.
    """
    lines = [line.split("#")[0].strip() for line in text.replace(";", "\n").splitlines()]
    found = [arm for line in lines if line for arm in _parse_line(line, rules, options)]
    if not found:
        raise ValueError(
            "REG: there are no settings to compare: write one rule a line with its cfg values, such as ratio 3 5."
        )
    return list(dict.fromkeys(found))


def _parse_line(line: str, rules: list[str], options: list[str]) -> list[Arm]:
    try:
        rule, *words = shlex.split(line.replace(",", " "))
    except ValueError as error:
        raise ValueError(f"REG: the setting {line!r} cannot be read ({error}).") from error
    if rule == NONE:
        return [UNGUIDED]
    if rule not in (CFG, *rules):
        raise ValueError(f"REG: {rule!r} in the setting {line!r} is no rule: use one of {', '.join([CFG, *rules])}.")
    pairs = [word.split("=", 1) for word in words if "=" in word]
    if unknown := [key for key, _ in pairs if key not in options]:
        raise ValueError(
            f"REG: {unknown[0]!r} in the setting {line!r} is no option of a REG node that can be set here."
        )
    if rule == CFG and pairs:
        raise ValueError(f"REG: the setting {line!r} gives options to plain CFG, which has none.")
    scales = [_scale(word, line) for word in words if "=" not in word]
    if not scales:
        raise ValueError(
            f"REG: the setting {line!r} has no cfg: write one or more numbers after the rule, such as {rule} 3 5."
        )
    return [Arm(rule, cfg, tuple(sorted((key, _value(word)) for key, word in pairs))) for cfg in scales]


def _scale(word: str, line: str) -> float:
    try:
        cfg = float(word)
    except ValueError:
        cfg = 0.0
    if not 1 < cfg <= 100:
        raise ValueError(f"REG: {word!r} in the setting {line!r} is no cfg above 1 and up to 100.")
    return cfg


def _value(word: str) -> str | float | int | bool:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, str | int | float | bool) else word


def _shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def with_references(arms: list[Arm], baseline_cfg: float) -> tuple[list[Arm], Arm]:
    """The arms with no guidance and the user's own CFG before them, and that CFG, which the others are compared with."""
    baseline = Arm(CFG, float(baseline_cfg))
    return list(dict.fromkeys([UNGUIDED, baseline, *arms])), baseline


def seeds(prompt: str, count: int, first: int) -> list[int]:
    """Seeds of a prompt's pictures. They follow from its text, so that prompts and pictures can be added later."""
    start = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest()) + first
    return [(start + i) % 2**32 for i in range(count)]


def cells(arms: list[Arm], prompts: list[str], pictures: int, seed: int) -> list[Cell]:
    """Every picture, all arms of a noise together and all prompts before the second noise: a run that is cut short
    has the same pictures of every arm."""
    by_prompt = {prompt: seeds(prompt, pictures, seed) for prompt in prompts}
    return [Cell(arm, prompt, by_prompt[prompt][i]) for i, prompt, arm in product(range(pictures), prompts, arms)]


def address(*parts) -> str:
    """A name that follows from the content: 32 hexadecimal digits of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def parse_prompts(text: str) -> list[str]:
    """Prompts, one a line; empty lines and lines that begin with # are left out, and so are repetitions.

    Raises:
        ValueError: there are none.
    """
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError("REG: there are no prompts: write one a line.")
    return list(dict.fromkeys(found))


def read_prompts(path) -> list[str]:
    """Prompts from a UTF-8 file.

    Raises:
        ValueError: the file is not there, not UTF-8, or has no prompts.
    """
    try:
        return parse_prompts(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"REG: the prompt file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"REG: the prompt file {path} is not UTF-8 text: save it as UTF-8 and run again.") from error
    except ValueError as error:
        raise ValueError(f"REG: the prompt file {path} has no prompts: write one a line.") from error


def parse_questions(text: str) -> list[list[str]]:
    """Questions that are asked of each picture, one a line, its answers apart by " / " or |: `a man / a woman`.

    Raises:
        ValueError: a question has fewer than two answers.
    """
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        answers = [answer.strip() for answer in BETWEEN_ANSWERS.split(line) if answer.strip()]
        if len(set(answers)) < 2:
            raise ValueError(f"REG: the question {line!r} needs two or more answers with a slash between them.")
        found.append(list(dict.fromkeys(answers)))
    return found


def read_questions(path) -> list[list[str]]:
    """Questions of a UTF-8 file: each line is one, as on the node, or has one of the answers to the only one.

    Raises:
        ValueError: the file cannot be read, or a question has fewer than two answers.
    """
    lines = read_prompts(path)
    return parse_questions(("\n" if any(map(BETWEEN_ANSWERS.search, lines)) else " | ").join(lines))
