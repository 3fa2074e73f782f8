"""An order, and what follows from it."""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models.functions import Now
from django.urls import reverse


class Order(models.Model):
    class Product(models.TextChoices):
        TEA = "tea", "Tea, 100 g"
        POT = "pot", "Tea pot"
        CUP = "cup", "Cup"

    PRICES = {
        Product.TEA: Decimal("7.90"),
        Product.POT: Decimal("48.00"),
        Product.CUP: Decimal("12.50"),
    }

    customer = models.CharField(max_length=100)
    product = models.CharField(max_length=3, choices=Product)
    quantity = models.PositiveSmallIntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"Order {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("shop:order", args=[self.pk])

    @property
    def amount(self) -> Decimal:
        return self.PRICES[self.Product(self.product)] * self.quantity


# A receipt and a payment carry no unique constraint on their order: one that is written twice
# must show in the ledger, not be hidden by the table.


class Receipt(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="receipts")
    recipient = models.CharField(max_length=100)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"Receipt {self.pk} for order {self.order_id}"


class Payment(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="payments")
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return f"Payment {self.pk} for order {self.order_id}"
