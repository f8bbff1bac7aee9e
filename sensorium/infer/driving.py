"""Many requests driven to their ends, as slots come free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sensorium.errors import UserError
from sensorium.infer.request import Request

if TYPE_CHECKING:
    from sensorium.infer.engine import Engine


def drive(engine: Engine, opened: Iterator[Request], ended: Callable[[Request], None]) -> None:
    """Requests are taken from `opened` as there is room for them; `ended` is called with each, in the order in which
    they end. One whose content cannot be read ends with its `error`, the others go on. Whatever is raised, no request
    stays behind in a slot.
    """
    pending: list[Request] = []
    more = True
    with engine._evaluating(), engine._freeing(pending):
        scheduler = engine.scheduler
        while True:
            while more and len(scheduler.waiting) < engine.slots:
                request = next(opened, None)
                if request is None:
                    more = False
                    break
                scheduler.submit(request)
                pending.append(request)
            for request in [request for request in pending if request.done]:
                pending.remove(request)
                ended(request)
            if not more and not pending:
                return
            try:
                scheduler.step()
            except UserError as error:
                for request in scheduler.blamed():
                    request.error = error
                    scheduler.cancel(request)
