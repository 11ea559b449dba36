"""Empty modules for what ComfyUI imports and sampling never calls, on a machine that does not have it."""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NOT_CALLED = frozenset(
    {"av", "torchaudio", "torchvision", "transformers", "tokenizers", "sentencepiece", "scipy", "PIL"}
)
NOT_CALLED |= {
    "aiohttp",
    "yaml",
    "kornia",
    "spandrel",
    "pydantic",
    "pydantic_settings",
    "requests",
    "simpleeval",
    "blake3",
}


class _Name(type):
    """Whatever is asked of a name is a name, too."""

    def __getattr__(cls, name: str):
        return _named(name)

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __getitem__(cls, item):
        return cls


def _named(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Name(name, (), {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, what, *rest: what})


class _Empty(ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str):
        return _named(name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, missing: frozenset[str]):
        self.missing = missing

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.missing else None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def install() -> list[str]:
    """Stand in for those that are missing; gives their names."""
    missing = frozenset(name for name in NOT_CALLED if importlib.util.find_spec(name) is None)
    if missing:
        sys.meta_path.append(_Finder(missing))
    return sorted(missing)
