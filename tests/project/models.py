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
