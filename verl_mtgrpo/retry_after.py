"""The header ``Retry-After`` of HTTP responses (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime


def parse_retry_after(value: str | None) -> float:
    """Return the seconds to wait, from the header's number or date; 0 if there is none or it is neither."""
    if not value:
        return 0.0
    try:
        # Only digits: float() would also take "nan".
        seconds = float(value) if value.strip().isdigit() else _seconds_until(parsedate_to_datetime(value))
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(seconds, 0.0)


def _seconds_until(moment: datetime) -> float:
    # A date without zone is in GMT: so says RFC 9110 of every HTTP date.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (moment - datetime.now(timezone.utc)).total_seconds()
