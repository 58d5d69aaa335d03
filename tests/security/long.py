"""The long form of the security tests: `python -m tests.security.long`, which `make test-security` runs.

It runs every test that stands for a threat, the slow ones too, and ends with one line of JSON. A threat is open when one
of its tests fails or is not there, and when it is named as open below. Nothing but loopback is talked to.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

THREATS: dict[str, tuple[str, ...]] = {
    "S1 pickle": (
        "tests/test_foreign_weights.py::test_a_pickle_planted_in_a_checkpoint_is_never_opened",
        "tests/test_foreign_weights.py::test_the_workers_torch_opens_no_pickle_even_where_it_is_told_to",
        "tests/test_foreign_weights.py::test_no_line_of_the_studio_opens_a_pickle",
        "tests/test_legacy.py",
        "tests/test_hub.py",
    ),
    "S2 remote code": (
        "tests/test_foreign_weights.py::test_a_registered_adapter_runs_no_code_unasked",
        "tests/test_hub.py",
        "tests/test_preflight.py",
    ),
    "S3 paths": ("tests/test_foreign_paths.py",),
    "S4 injection": ("tests/test_spelling.py",),
    "S5 requests": (
        "tests/test_foreign_weights.py::test_the_base_that_an_adapter_names_is_not_asked_for",
        "tests/test_evaluate.py::test_a_judge_s_key_is_shown_to_no_other_host",
    ),
    "S6 exposure": (
        "tests/test_hosts.py",
        "tests/browser/test_doors.py",
        "tests/test_api.py::test_foreign_hosts_are_refused",
    ),
    "S7 foreign text": (
        "tests/browser/test_hostile.py",
        "tests/browser/test_doors.py::test_pages_ask_nothing_of_another_host_and_their_policy_hinders_nothing_of_their_own",
    ),
    "S8 archives": ("tests/test_data_upload.py",),
    "S9 bombs": ("tests/test_data_upload.py",),
    "S10 secrets": ("tests/test_secrets.py", "tests/test_redact.py"),
    "S11 adapters": ("tests/test_foreign_weights.py",),
    "S13 several people": ("tests/test_people.py", "tests/test_writes.py", "tests/browser/test_login.py"),
    "S14 permissions": ("tests/test_private.py", "tests/test_secrets.py"),
}
OPEN = {
    "S12 supply chain": "no audit of the pinned packages is run: it needs an advisory service",
}


class Tally:
    """How each test ended, and what the tests reported of what they counted."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.counted: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.nodeid] = report.outcome
        if report.when == "call":
            self.counted.update({k: int(v) for k, v in report.user_properties if k in COUNTED})

    def open(self) -> Iterator[str]:
        """The threats of which a test failed, was skipped whole or did not run."""
        for threat, tests in THREATS.items():
            for test in tests:
                ran = {outcome for node, outcome in self.ended.items() if node.startswith(test)}
                if "failed" in ran or "passed" not in ran:
                    yield threat
                    break


COUNTED = ("secrets_sought", "secrets_leaked", "outside_requests")


def main() -> int:
    tally = Tally()
    every = {test for tests in THREATS.values() for test in tests}
    tests = sorted(test for test in every if "::" not in test or test.split("::")[0] not in every)
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[tally])
    threats_open = sorted({*tally.open(), *OPEN})
    said = {
        "threats_tested": len(THREATS),
        "threats_open": len(threats_open),
        "open": threats_open,
        "tests": len(tally.ended),
        "failed": sum(outcome == "failed" for outcome in tally.ended.values()),
        **{name: tally.counted[name] for name in COUNTED},
    }
    print(json.dumps(said), flush=True)
    return (
        1
        if set(threats_open) - set(OPEN)
        or said["failed"]
        or said["secrets_leaked"]
        or said["outside_requests"]
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
