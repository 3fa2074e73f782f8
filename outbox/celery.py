"""A task class whose ``delay()`` and ``apply_async()`` write to the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.contrib.django.task import DjangoTask
from celery.result import AsyncResult
from django.db import connections, router, transaction

from outbox import wire
from outbox.exceptions import UnsupportedSignature

if TYPE_CHECKING:
    from outbox.models import OutboxMessage

    BaseTask = DjangoTask[Any, Any]
else:
    BaseTask = DjangoTask  # Celery 5.5 knows no subscript


class OutboxTask(BaseTask):
    """``@shared_task(base=OutboxTask)``, or ``Celery(task_cls=OutboxTask)`` for every task.

    A call writes a message in the current transaction, opening one where there is none, and
    returns ``AsyncResult(message id)``. So do ``delay_on_commit()`` and
    ``apply_async_on_commit()``, which return nothing. What Celery itself sends is not touched:
    retries, continuations of a chain, callbacks, and beat, all of which name the task id or the
    producer. Nor are ``app.send_task()`` and the calls of ``map()``, ``starmap()`` and
    ``chunks()``, which do not call the task: enqueue those.
    """

    abstract = True

    def apply_async(  # type: ignore[override]
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Like Celery's, through the outbox.

        Raises ``ValueError`` for a ``task_id`` of one's own and ``UnsupportedSignature`` for the
        member of a group or chord that is called outside a worker.
        """
        if self._belongs_to_celery(task_id, producer, options):
            return super().apply_async(args, kwargs, task_id=task_id, producer=producer, **options)
        # Of a chain that is a member, the last step says so.
        steps: list[Any] = list(options.get("chain") or ())
        named = {*options, *(steps[0]["options"] if steps else ())}
        if {"group_id", "chord"} & named:
            raise UnsupportedSignature(
                f"{self.name}: a group or chord would publish its members before the transaction "
                "commits. Use OutboxMessage.objects.enqueue_many(group) for a group, and a task "
                "that starts the chord for a chord."
            )
        signature = self.signature(args, kwargs, **options)
        if task_id is not None:
            signature.options["task_id"] = task_id
        messages = _model().objects
        with transaction.atomic(using=router.db_for_write(messages.model)):
            message = messages.enqueue(signature)
        return self.AsyncResult(str(message.id))

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(self, *args: Any, **options: Any) -> None:  # type: ignore[override]
        if self.app.conf.task_always_eager:
            super().apply_async_on_commit(*args, **options)
        else:
            # Not when it has committed: whoever dies between the two would lose it.
            self.apply_async(*args, **options)

    def _belongs_to_celery(
        self, task_id: str | None, producer: Any, options: dict[str, Any]
    ) -> bool:
        app = self.app
        if app.conf.task_always_eager or wire.is_capturing(producer):
            return True
        current = app.current_worker_task
        if current is not None and task_id is not None:
            # A retry; or what follows a task, which Celery sends when its transaction is over.
            in_transaction = connections[router.db_for_write(_model())].in_atomic_block
            return task_id == current.request.id or not in_transaction
        # Beat has a producer of its own, and so have groups.
        return producer is not None and "group_id" not in options


def _model() -> type[OutboxMessage]:
    # Not at the top: a project's celery.py is imported before there are models.
    from outbox.models import OutboxMessage

    return OutboxMessage
