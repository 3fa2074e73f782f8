from __future__ import annotations

from django.contrib import admin

from sample_project.shop.models import Order, Payment, Receipt


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("id", "customer", "product", "quantity", "created_at")
    list_filter = ("product",)
    search_fields = ("=id", "customer")
    date_hierarchy = "created_at"


@admin.register(Receipt)
class ReceiptAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("id", "order", "recipient", "created_at")
    list_select_related = ("order",)
    search_fields = ("=order__id", "recipient")
    raw_id_fields = ("order",)


@admin.register(Payment)
class PaymentAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("id", "order", "amount", "created_at")
    list_select_related = ("order",)
    search_fields = ("=order__id",)
    raw_id_fields = ("order",)
