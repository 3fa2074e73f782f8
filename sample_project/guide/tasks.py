"""Where Celery looks for this app's tasks; each pattern has a module of its own."""

from sample_project.guide.credit import give_credit, pay_bonus
from sample_project.guide.imports import import_sales
from sample_project.guide.lock import print_label
from sample_project.guide.notification import send_notification
from sample_project.guide.payment import pay
from sample_project.guide.stock import count_sale, take_from_stock
from sample_project.guide.upsert import add_points, set_price

__all__ = [
    "add_points",
    "count_sale",
    "give_credit",
    "import_sales",
    "pay",
    "pay_bonus",
    "print_label",
    "send_notification",
    "set_price",
    "take_from_stock",
]
