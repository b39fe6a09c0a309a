"""What a check says: one line, and what to do if it is not well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: Name of the check.
        status: ``ok``; ``warn``: the run works, but perhaps not as meant; ``fail``: it would not do what it says;
            ``skip``: could not be looked at from here.
        message: What was found, in one line.
        fix: What to do about it; empty for ``ok``.
    """

    check: str
    status: Status
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


def from_error(check: str, error: Exception, fix: str = "", status: Status = "fail") -> Finding:
    """A finding from an error of this package.

    Its message says by convention what was found and then what to do (parted by the first semicolon) or was expected.

    Args:
        check: Name of the check.
        error: What was raised.
        fix: What to do, if the message does not say it.
        status: How bad it is.
    """
    text = one_line(str(error))
    message, _, advice = text.partition("; ")
    if not advice and ", expected " in text:
        advice = f"set it to {text.partition(', expected ')[2]}"
    return Finding(check, status, message, advice or fix)


def one_line(text: str) -> str:
    """The text without line breaks and runs of blanks."""
    return " ".join(text.split())


def any_failed(findings: list[Finding]) -> bool:
    """Whether one of them is a failure."""
    return any(finding.status == "fail" for finding in findings)


def as_dicts(findings: list[Finding]) -> list[dict[str, str]]:
    """For ``--json``."""
    return [asdict(finding) for finding in findings]


def as_text(findings: list[Finding]) -> str:
    """A line for each finding, with a line ``fix:`` below those that have one, and a last line that sums up."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            lines.append(f"{'':<{width + 8}}fix: {finding.fix}")
    counts = {status: sum(finding.status == status for finding in findings) for status in ("fail", "warn", "skip")}
    if counts["fail"]:
        summary = f"{counts['fail']} failed: this would not run, or not do what it says"
    else:
        summary = "nothing failed"
    more = [
        f"{counts[status]} {word}" for status, word in (("warn", "to look at"), ("skip", "skipped")) if counts[status]
    ]
    return "\n".join([*lines, "", "; ".join([summary, *more])])
