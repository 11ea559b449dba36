"""Which files of this checkout users get: those that git tracks and no line of `.comfyignore` names."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def shipped(root: Path = ROOT) -> list[str]:
    """Paths from the root. The lines are plain names of files and folders; comfy-cli would also take patterns."""
    lines = (root / ".comfyignore").read_text().split()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [path for path in tracked.stdout.split("\0") if path and not any(names(line, path) for line in lines)]


def names(line: str, path: str) -> bool:
    line = line.removeprefix("/")  # which says: here, not in every folder
    return path == line or (line.endswith("/") and path.startswith(line))
