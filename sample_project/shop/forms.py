from __future__ import annotations

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator

from sample_project.shop.models import Order


class OrderForm(forms.ModelForm):  # type: ignore[type-arg]
    quantity = forms.IntegerField(
        initial=1, validators=[MinValueValidator(1), MaxValueValidator(99)]
    )

    class Meta:
        model = Order
        fields = ("customer", "product", "quantity")
