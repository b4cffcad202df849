"""What a consumer may see of its providers' kills: the table that the documentation makes in words."""

from __future__ import annotations

import errno

DIED = frozenset({errno.ECONNABORTED})
GONE = frozenset({errno.ECONNABORTED, errno.ENOTCONN})
NONE: frozenset[int] = frozenset()

PROMISED: dict[tuple[str, str], frozenset[int]] = {
    # A file: one error for a kill at most, since it has one request at a time, and none where they are reissued.
    ("file", "fail"): DIED,
    ("file", "reissue"): NONE,
    # The channel: its connection ends with the process, and `retry` opens another.
    ("channel", "fail"): GONE,
    ("channel", "reissue"): GONE,
    ("retry", "fail"): NONE,
    ("retry", "reissue"): NONE,
    # A device that consumes another over the channel passes on what that sees.
    ("stack", "fail"): GONE,
    ("stack", "reissue"): GONE,
}
"""By path and policy: the errors that a kill may cause, one for each kill and request that was under way."""
