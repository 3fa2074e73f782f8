from django.db import models


class Effect(models.Model):
    """One row for each time that something took effect."""

    label = models.CharField(max_length=200, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.label
