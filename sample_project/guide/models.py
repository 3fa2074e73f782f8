"""The rows that the tasks of the guide write."""

from __future__ import annotations

from django.db import models
from django.db.models import Sum


class Player(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name

    @property
    def score(self) -> int:
        total: int = self.points.aggregate(score=Sum("points", default=0))["score"]
        return total


class Points(models.Model):
    """Points that were given once, for one event."""

    event_id = models.UUIDField(primary_key=True)
    player = models.ForeignKey(Player, on_delete=models.CASCADE, related_name="points")
    points = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.points} points"


class Price(models.Model):
    """The newest version of a product's price that has arrived."""

    product = models.CharField(max_length=50, primary_key=True)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    version = models.PositiveBigIntegerField()

    def __str__(self) -> str:
        return f"{self.product} {self.price}"


class Credit(models.Model):
    customer = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    reason = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.amount} for {self.customer}"


class Label(models.Model):
    """A parcel's label; nothing but the guard keeps a second one from being written."""

    order_id = models.BigIntegerField()

    def __str__(self) -> str:
        return f"Label of order {self.order_id}"


class Sale(models.Model):
    product = models.CharField(max_length=50)
    quantity = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"


class Stock(models.Model):
    product = models.CharField(max_length=50, primary_key=True)
    quantity = models.IntegerField()
    sold = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"


class Payment(models.Model):
    """What a customer has been asked to pay, and the gateway's receipt once it is charged."""

    id = models.UUIDField(primary_key=True)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    currency = models.CharField(max_length=3)
    declined = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"Payment {self.pk} of {self.amount} {self.currency}"


class Booking(models.Model):
    """Money that has come in. At most one for each payment, whatever the keys say."""

    payment = models.OneToOneField(Payment, on_delete=models.PROTECT, related_name="booking")
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    receipt = models.CharField(max_length=64, unique=True)

    def __str__(self) -> str:
        return f"Booking of {self.amount}"
