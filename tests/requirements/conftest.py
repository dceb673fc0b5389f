"""Tells, at the end of a run, how much of the standard is shown by tests."""

from __future__ import annotations

import pytest

from .table import summary


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("-", "demands of virtio 1.4")
    for line in summary():
        terminalreporter.write_line(line)
