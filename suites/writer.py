"""Records go to the disk as they come in, in the one process that began the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from reports.run import Run


@dataclass(eq=False)
class Writer:
    """A check's last report carries its record, as a line; from a worker, it comes through xdist."""

    run: Run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        line = getattr(report, "record", "")
        if not line:
            return
        try:
            self.run.add(line)
        except OSError as error:
            # nothing that is measured from here on could be kept
            pytest.exit(f"the record of {report.nodeid} cannot be written: {error}", returncode=2)
