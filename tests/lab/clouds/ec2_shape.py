"""The shape of EC2's answers: its namespace, the codes of states, and the frame around a reply."""

from __future__ import annotations

import uuid

__all__ = ["NAMESPACE", "STATES", "reply"]

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


def reply(action: str, content: str) -> bytes:
    """A reply of EC2 with this content."""
    inside = f"<requestId>{uuid.uuid4()}</requestId>{content}"
    root = f'<{action}Response xmlns="{NAMESPACE}">{inside}</{action}Response>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}'.encode()
