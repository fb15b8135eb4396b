"""The table of what was injected and survived, printed at the end."""

SURVIVED: list[tuple[str, int, str, str]] = []
"""Injury, seed, how the injured run ended, and what was there and done afterwards."""


def pytest_terminal_summary(terminalreporter):
    if SURVIVED:
        terminalreporter.section(f"{len(SURVIVED)} runs injured and survived")
        for injury, seed, ended, after in SURVIVED:
            terminalreporter.write_line(f"{injury:34} seed {seed:2}  {ended:18} {after}")
