"""Live news for whoever listens.

Laws of this file:
- Publishing never waits and never fails; with no subscriber it costs next to nothing.
- A subscriber that is too slow loses the oldest news and is told how much it lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from modelyard.core.views import Event


class Subscription:
    """One listener's bounded mailbox."""

    def __init__(self, size: int, topics: frozenset[str] | None) -> None:
        self._topics = topics
        self._mail: deque[Event] = deque()
        self._size = size
        self._lost = 0
        self._news = asyncio.Event()
        self._closed = False

    def wants(self, topic: str) -> bool:
        return self._topics is None or topic in self._topics

    def put(self, event: Event) -> None:
        if len(self._mail) >= self._size:
            self._mail.popleft()
            self._lost += 1
        self._mail.append(event)
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._lost:
                lost, self._lost = self._lost, 0
                yield Event("lost", lost)
            while self._mail:
                yield self._mail.popleft()
            if self._closed:
                return


class Broadcast:
    """Fans events out to any number of subscriptions."""

    def __init__(self, mailbox: int = 256) -> None:
        self._mailbox = mailbox
        self._subscriptions: set[Subscription] = set()

    def wanted(self, topic: str) -> bool:
        """Whether anybody listens to the topic, so that news nobody hears is not even made."""
        return any(subscription.wants(topic) for subscription in self._subscriptions)

    def publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            if subscription.wants(event.topic):
                subscription.put(event)

    @contextmanager
    def subscribe(self, topics: Iterable[str] | None = None) -> Iterator[Subscription]:
        """A mailbox for everything published on `topics` (all, if None) within the block."""
        chosen = None if topics is None else frozenset(topics)
        subscription = Subscription(self._mailbox, chosen)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription, so that streams to slow clients do not hold up the shutdown."""
        for subscription in self._subscriptions:
            subscription.close()
