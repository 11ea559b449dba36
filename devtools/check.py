"""Lint, format check and tests: what `python3 dev.py test` runs. Arguments go to pytest."""

import subprocess
import sys

SIDE_BY_SIDE = ["-n", "2", "--dist", "loadfile"]  # all tests, in two processes


def main() -> int:
    """Run all three whatever the first ones say; the exit code is the first that is not zero."""
    python = [sys.executable, "-P", "-m"]
    concise = ["--output-format", "concise"]
    tests = ["pytest", *(sys.argv[1:] or SIDE_BY_SIDE)]
    checks = [["ruff", "check", *concise], ["ruff", "format", "--check", *concise], tests]
    codes = []
    for check in checks:
        print("$", *check, flush=True)
        codes.append(subprocess.call([*python, *check]))
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
