from django.db import models


class Effect(models.Model):
    """One row for each time that something took effect."""

    label = models.CharField(max_length=200, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.label


class Delivery(models.Model):
    """One row for each time that a worker began a message, whatever became of it."""

    message_id = models.UUIDField(db_index=True)
    published_at = models.CharField(max_length=40, help_text="The relay's stamp on this publish.")

    def __str__(self) -> str:
        return str(self.message_id)


class Intent(models.Model):
    """What a transaction wanted, committed with its message: it shall have one effect.

    Those of one ordering key shall have it in the order of their ids.
    """

    label = models.CharField(max_length=200, unique=True)
    ordering_key = models.CharField(max_length=100, default="")

    def __str__(self) -> str:
        return self.label


class RelayedMessage(models.Model):
    """What a relay did to a message, and when."""

    message_id = models.UUIDField(db_index=True)
    relay = models.CharField(max_length=40)
    at = models.DateTimeField()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.message_id} {self.relay}"


class Held(RelayedMessage):
    """A message that a relay held in its claim when it was killed, paused or cut off."""


class Settled(RelayedMessage):
    """A message that a relay marked published, in the transaction that marked it."""
