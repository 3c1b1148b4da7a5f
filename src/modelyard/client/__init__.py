"""A typed client of a running server: its admin API, and the inference routes that people use.

Laws of this package:
- Calls block; streams are iterators that may be closed, from another thread, too.
- Importing it is cheap: httpx is imported with the first `Client`.
"""

from modelyard.client.address import DEFAULT_URL, STATE_FILE, find_url
from modelyard.client.api import Client, Message
from modelyard.client.errors import (
    ApiError,
    ConnectionLost,
    NotModelyard,
    ServerNotRunning,
    ServerSilent,
)
from modelyard.client.streams import Answer, Events
from modelyard.client.wire import Ranked, Usage

__all__ = [
    "DEFAULT_URL",
    "STATE_FILE",
    "Answer",
    "ApiError",
    "Client",
    "ConnectionLost",
    "Events",
    "Message",
    "NotModelyard",
    "Ranked",
    "ServerNotRunning",
    "ServerSilent",
    "Usage",
    "find_url",
]
