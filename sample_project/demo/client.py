"""The clients: they place orders over HTTP, several at once."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPConnection

NAMES = ("Ada", "Alan", "Barbara", "Edsger", "Grace", "Leslie", "Nancy", "Tony")
PRODUCTS = ("tea", "pot", "cup")
MOST = 5
AT_ONCE = 4


class OrderRefused(Exception):
    """The web server did not take an order; the message has its answer."""


class Clients:
    """``place`` returns at once; ``accepted`` counts the orders that were answered with 201."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="client")
        self._orders: list[Future[int]] = []

    def place(self, count: int) -> None:
        first = len(self._orders)
        self._orders += [self._pool.submit(self._place, first + index) for index in range(count)]

    @property
    def accepted(self) -> int:
        """Raises ``OrderRefused`` if an order was not accepted."""
        return sum(1 for order in self._orders if order.done() and order.result())

    @property
    def waiting(self) -> int:
        """Orders that have no answer yet."""
        return sum(not order.done() for order in self._orders)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _place(self, number: int) -> int:
        order = {
            "customer": NAMES[number % len(NAMES)],
            "product": PRODUCTS[number % len(PRODUCTS)],
            "quantity": 1 + number % MOST,
        }
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(
                "POST", "/api/orders/", json.dumps(order), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != HTTPStatus.CREATED:
            raise OrderRefused(f"{order} got {answer.status}: {body[:500]!r}")
        return int(json.loads(body)["order"])
