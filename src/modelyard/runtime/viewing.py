"""From the scheduler's state to what the admin API says of it."""

from __future__ import annotations

from modelyard.core import placement
from modelyard.core.explain import why_waiting
from modelyard.core.lifecycle import State
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import ModelState
from modelyard.core.views import ModelView
from modelyard.runtime.engine_run import EngineRun


def view_model(
    slot: ModelState,
    run: EngineRun | None,
    last: EngineRun | None,
    scheduler: Scheduler,
    now: float,
    wall: float,
) -> ModelView:
    """One model now, with its present run and its last one, which may be the same.

    `now` is the scheduler's clock, `wall` the same moment since the epoch.
    """
    spec, ready = slot.spec, slot.state is State.READY
    why = why_waiting(scheduler.models, scheduler.devices, spec.id, now) if slot.wanted else None
    progress = run.progress if run is not None and slot.state is State.STARTING else None
    found, _ = placement.candidates(spec, scheduler.devices)
    return ModelView(
        id=spec.id,
        state=slot.state.value,
        tasks=sorted(task.value for task in spec.tasks),
        engine=spec.engine,
        aliases=list(spec.aliases),
        source=spec.source,
        context_length=spec.context_length,
        needs_mib=dict(found[0].claims_mib) if found else {},
        pinned=spec.pinned,
        preload=spec.preload,
        priority=spec.priority,
        profile=slot.placement.profile if slot.placement else None,
        passed_over=list(slot.passed_over),
        memory_mib=dict(slot.placement.claims_mib) if slot.placement else {},
        run=slot.replica.run,
        pid=run.pid if run else None,
        in_flight=slot.in_flight,
        queued=len(slot.queue),
        idle_s=round(now - slot.last_used, 3) if slot.idle else None,
        last_used_at=round(wall - (now - slot.last_used), 3) if last else None,
        ready_s=round(now - slot.ready_since, 3) if ready else None,
        phase=progress.phase if progress else None,
        percent=progress.percent if progress else None,
        waiting_for=why,
        reason=slot.replica.reason or None,
        failures=slot.replica.failures,
        log_path=str(last.log.path) if last and last.log else None,
    )
