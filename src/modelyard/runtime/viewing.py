"""From the scheduler's state to what the admin API says of it."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.core import placement
from modelyard.core.explain import why_waiting
from modelyard.core.lifecycle import State
from modelyard.core.pricing import Price
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import ModelState, ReplicaState
from modelyard.core.views import (
    DeviceView,
    ModelView,
    PriceView,
    ReplicaView,
    ShareView,
    WaitingView,
)
from modelyard.devices.base import Reading
from modelyard.runtime.remote_run import Run

FOREVER_S = 100 * 365 * 86_400.0
"""Stands for infinity, which JSON has not."""


def view_model(
    slot: ModelState,
    runs: Mapping[int, Run],
    last: Run | None,
    scheduler: Scheduler,
    now: float,
    wall: float,
) -> ModelView:
    """One model now, with its present runs by number, and its last one.

    `now` is the scheduler's clock, `wall` the same moment since the epoch.
    """
    spec, replica = slot.spec, slot.best
    run, ready = runs.get(replica.life.run), replica.state is State.READY
    why = why_waiting(scheduler.models, scheduler.devices, spec.id, now) if slot.wanted else None
    ahead = scheduler.outlook(spec.id, now) if slot.wanted else None
    progress = run.progress if run is not None and replica.state is State.STARTING else None
    profiles = placement.ways(slot, scheduler.devices).profiles
    return ModelView(
        id=spec.id,
        state=slot.state.value,
        tasks=sorted(task.value for task in spec.tasks),
        engine=spec.engine,
        aliases=list(spec.aliases),
        shape=spec.shape.told() if spec.shape else {},
        variants={
            name: (spec.shape.under(shape) if spec.shape else shape).told()
            for name, shape in spec.variants.items()
        },
        source=spec.source,
        context_length=spec.context_length,
        needs_mib=dict(profiles[0][0].claims_mib) if profiles else {},
        pinned=spec.pinned,
        preload=spec.preload,
        priority=spec.priority,
        profile=replica.placement.profile if replica.placement else None,
        passed_over=list(slot.passed_over),
        memory_mib=dict(slot.held_mib),
        sleep_level=replica.life.level if replica.state is State.ASLEEP else 0,
        sleep_levels=slot.sleep_levels,
        used_mib={} if replica.asleep_mib else dict(replica.used_mib),
        run=replica.life.run,
        pid=run.pid if run else None,
        in_flight=slot.in_flight,
        queued=len(slot.queue),
        idle_s=round(now - replica.last_used, 3) if replica.is_idle else None,
        last_used_at=round(wall - (now - replica.last_used), 3) if last else None,
        keep_s=None if slot.keep_s is None else min(slot.keep_s, FOREVER_S),
        ready_s=round(now - replica.ready_since, 3) if ready else None,
        phase=progress.phase if progress else None,
        percent=progress.percent if progress else None,
        waiting_for=why,
        next_step=ahead.next_step if ahead else None,
        position=ahead.position if ahead else 0,
        expected_s=round(ahead.expected_s, 3) if ahead else None,
        reason=replica.life.reason or None,
        failures=replica.life.failures,
        log_path=str(last.log.path) if last and last.log else None,
        replicas=[_view_replica(each, runs) for each in slot.replicas if slot.replicas[1:]],
        price=_view_price(spec.price) if spec.price else None,
    )


def _view_price(price: Price) -> PriceView:
    cached = None if price.cached_input is None else f"{price.cached_input:f}"
    return PriceView(f"{price.input:f}", f"{price.output:f}", cached, price.per, price.currency)


def view_waiting(scheduler: Scheduler, now: float) -> list[WaitingView]:
    """Every request that waits, those of one model in the order in which they will be served."""
    views = []
    for slot in scheduler.models.values():
        if not slot.queue:
            continue
        why = why_waiting(scheduler.models, scheduler.devices, slot.spec.id, now)
        ahead = scheduler.outlook(slot.spec.id, now)
        places = slot.spec.limits.concurrency or len(slot.queue)
        for place, request in enumerate(slot.queue.in_order(), start=1):
            rounds = (place - 1) // places
            views.append(
                WaitingView(
                    ticket=request.ticket,
                    model=slot.spec.id,
                    position=place,
                    waited_s=round(now - request.arrived, 3),
                    expected_s=round(ahead.expected_s + rounds * slot.demand.service_s, 3),
                    why=why,
                    next_step=ahead.next_step,
                    priority=request.priority,
                )
            )
    return views


def _view_replica(replica: ReplicaState, runs: Mapping[int, Run]) -> ReplicaView:
    run = runs.get(replica.life.run)
    return ReplicaView(
        number=replica.number,
        state=replica.state.value,
        run=replica.life.run,
        pid=run.pid if run else None,
        in_flight=replica.in_flight,
        profile=replica.placement.profile if replica.placement else None,
        memory_mib=dict(replica.held_mib),
        used_mib=dict(replica.asleep_mib or replica.used_mib),
    )


def view_devices(scheduler: Scheduler, readings: Mapping[str, Reading]) -> list[DeviceView]:
    """The devices, who holds what there by claim, and what they really hold."""
    holders = [
        replica
        for slot in scheduler.models.values()
        for replica in slot.replicas
        if replica.placement is not None
    ]
    views = []
    for device in scheduler.devices:
        reading = readings.get(device.id)
        shares = [
            ShareView(each.key, each.state.value, held, _really(each, device.id))
            for each in holders
            if (held := each.held_mib.get(device.id)) is not None
        ]
        views.append(
            DeviceView(
                id=device.id,
                name=device.name,
                kind=device.kind,
                index=device.index,
                total_mib=device.total_mib,
                capacity_mib=device.capacity_mib,
                ceiling_mib=device.most_mib,
                strangers_mib=device.strangers_mib,
                claimed_mib=sum(each.held_mib.get(device.id, 0) for each in holders),
                shares=shares,
                used_mib=reading.used_mib if reading else None,
                utilisation=reading.utilisation if reading else None,
                temperature_c=reading.temperature_c if reading else None,
                power_w=reading.power_w if reading else None,
                notes=list(reading.notes) if reading else [],
            )
        )
    return views + [_unusable(reading) for reading in readings.values() if reading.failure]


def _really(replica: ReplicaState, device: str) -> int | None:
    """What the replica was last seen to hold on a device, awake or asleep."""
    return (replica.asleep_mib or replica.used_mib).get(device)


def _unusable(reading: Reading) -> DeviceView:
    """A device that is there and cannot be used, with the reason."""
    return DeviceView(
        id=reading.id,
        name=reading.name,
        kind=reading.kind,
        index=reading.index,
        total_mib=reading.total_mib,
        capacity_mib=0,
        claimed_mib=0,
        notes=[*reading.notes, reading.failure or ""],
    )
