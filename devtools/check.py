"""Lint, format check and tests: what `python3 dev.py test` runs. Arguments go to pytest."""

import subprocess
import sys


def main() -> int:
    """Run all three whatever the first ones say; the exit code is the first that is not zero."""
    python = [sys.executable, "-P", "-m"]
    concise = ["--output-format", "concise"]
    checks = [["ruff", "check", *concise], ["ruff", "format", "--check", *concise], ["pytest", *sys.argv[1:]]]
    codes = []
    for check in checks:
        print("$", *check, flush=True)
        codes.append(subprocess.call([*python, *check]))
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
