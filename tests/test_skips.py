"""What is left out for no expected reason fails; what is expected to be left out does not."""

pytest_plugins = ["pytester"]

HOOKS = "from pack.tests.skips import pytest_make_collect_report, pytest_runtest_makereport"


def outcomes(pytester, *files: str) -> dict[str, int]:
    pytester.makeconftest(HOOKS)
    for number, text in enumerate(files):
        pytester.makepyfile(**{f"test_{number}": f"import pytest\n{text}"})
    return pytester.inline_run("-p", "no:cacheprovider").listoutcomes()


def counted(pytester, *files: str) -> tuple[int, ...]:
    return tuple(map(len, outcomes(pytester, *files)))  # passed, skipped, failed


def test_a_test_left_out_unexpectedly_fails(pytester):
    assert counted(pytester, "def test():\n    pytest.skip('no mood')") == (0, 0, 1)
    assert counted(pytester, "@pytest.mark.skipif(True, reason='no mood')\ndef test(): ...") == (0, 0, 1)


def test_a_whole_file_left_out_unexpectedly_fails(pytester):
    assert counted(pytester, "pytest.importorskip('no_such_library')\ndef test(): ...") == (0, 0, 1)


def test_what_is_expected_is_left_out(pytester):
    text = "def test():\n    pytest.skip('no Chromium is installed here')"
    assert counted(pytester, text, "def test(): ...") == (1, 1, 0)


def test_known_failures_stay_what_they_are(pytester):
    assert counted(pytester, "@pytest.mark.xfail\ndef test(): assert False") == (0, 1, 0)
