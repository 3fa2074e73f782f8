"""The gateway's HTTP side: a real server, of the standard library, with a thread per request.

POST /charges        {"amount": cents, "currency", "reference"}; knows ``Idempotency-Key``
GET  /charges        everything that was charged
POST /notifications  {"recipient", "text"}; knows no keys: what comes twice is sent twice
GET  /notifications  everything that was sent
POST /faults         {"script": [...], "fail", "hang", "decline", "hang_seconds"}
GET  /statistics     what was recognised by its key, and which faults there were
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from sample_project.gateway.faults import Fault, Faults
from sample_project.gateway.ledger import Charge, KeyReused, Ledger, Notification


class Gateway(ThreadingHTTPServer):
    """Listens on loopback; ``with Gateway() as gateway`` serves in a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.ledger = Ledger()
        self.faults = Faults()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        gateway = self.server
        match self.path:
            case "/charges":
                self._answer(HTTPStatus.OK, [asdict(charge) for charge in gateway.ledger.charges])
            case "/notifications":
                self._answer(HTTPStatus.OK, [asdict(sent) for sent in gateway.ledger.notifications])
            case "/statistics":
                faults = {str(fault): count for fault, count in gateway.faults.seen.items()}
                recognised = gateway.ledger.recognised
                self._answer(HTTPStatus.OK, {"recognised": recognised, **faults})
            case _:
                self._answer(HTTPStatus.NOT_FOUND, {"error": f"There is no {self.path}."})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            given = json.loads(body)
            match self.path:
                case "/charges":
                    self._do(lambda: self._charge(Charge(**given)))
                case "/notifications":
                    self._do(lambda: self._notify(Notification(**given)))
                case "/faults":
                    self.server.faults = Faults(**given)
                    self._answer(HTTPStatus.OK, given)
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, {"error": f"There is no {self.path}."})
        except (ValueError, TypeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _do(self, work: Any) -> None:
        """Do what was asked for, if this is a good day."""
        faults = self.server.faults
        fault = faults.draw()
        if fault is Fault.FAIL:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "Nothing was done."})
        elif fault is Fault.DECLINE:
            self._answer(HTTPStatus.PAYMENT_REQUIRED, {"error": "The bank says no."})
        else:
            status, answer = work()
            if fault is Fault.HANG:
                self.server.closing.wait(faults.hang_seconds)
                self.close_connection = True
            else:
                self._answer(status, answer)

    def _charge(self, charge: Charge) -> tuple[HTTPStatus, Any]:
        try:
            made = self.server.ledger.charge(charge, self.headers.get("Idempotency-Key"))
        except KeyReused as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
        return HTTPStatus.CREATED, asdict(made)

    def _notify(self, notification: Notification) -> tuple[HTTPStatus, Any]:
        self.server.ledger.notify(notification)
        return HTTPStatus.CREATED, asdict(notification)

    def _answer(self, status: HTTPStatus, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the ledger tells."""
