"""The finding of a check: one line, and its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from verl_mtgrpo.errors import MTGRPOError

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: Name of the check, the first word of its line.
        status: ``ok``; ``warn``: the run works, but perhaps not as intended; ``fail``: it would stop, or not do what
            its config says; ``skip``: it could not be checked from here.
        message: The result in one line.
        fix: What to do about it; empty for ``ok``.
    """

    check: str
    status: Status
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


def from_error(check: str, error: MTGRPOError, fix: str = "", status: Status = "fail") -> Finding:
    """Return a finding from an error of this package.

    Args:
        check: Name of the check.
        error: The error.
        fix: What to do, if the error names neither a fix nor an expected value.
        status: The status of the finding.
    """
    advice = error.fix or (f"set it to {error.expected}" if error.expected else fix)
    return Finding(check, status, one_line(error.found), one_line(advice))


def one_line(text: str) -> str:
    """Return the text without line breaks and runs of blanks."""
    return " ".join(text.split())


def any_failed(findings: list[Finding]) -> bool:
    """Return True if one of the findings is a failure."""
    return any(finding.status == "fail" for finding in findings)


def as_dicts(findings: list[Finding]) -> list[dict[str, str]]:
    """Return the findings as ``--json`` prints them."""
    return [asdict(finding) for finding in findings]


def as_text(findings: list[Finding]) -> str:
    """Return a line for each finding, with a line ``fix:`` below those that have one, and a last line that sums up."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            lines.append(f"{'':<{width + 8}}fix: {finding.fix}")
    counts = {status: sum(finding.status == status for finding in findings) for status in ("fail", "warn", "skip")}
    if counts["fail"]:
        summary = f"{counts['fail']} failed: this run would stop, or not do what its config says"
    else:
        summary = "nothing failed"
    more = [
        f"{counts[status]} {word}" for status, word in (("warn", "to look at"), ("skip", "skipped")) if counts[status]
    ]
    return "\n".join([*lines, "", "; ".join([summary, *more])])
