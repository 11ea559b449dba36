"""A test that is left out fails, unless the reason is one that is expected where the tests run.

Hooks of pytest; `tests/conftest.py` has them, and adds the reasons of an older ComfyUI or of none.
"""

import pytest

EXPECTED = [  # parts of reasons
    "installed here",  # Chromium, of which conftest.py says aloud that it is missing
    "looks for processes in /proc",  # not on every system
    "a difference crosses its jumps",  # a combination of parameters that a page says does not work
]


def judged(report):
    """The report of a test or a file; a failure if it was left out for no expected reason."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if not any(words in reason for words in EXPECTED):
            report.outcome = "failed"
            report.longrepr = f"Left out, and not for a reason in tests/skips.py: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return judged((yield))
