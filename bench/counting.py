"""A proxy before a double of DynamoDB that counts what the store asks of it, in requests and in write units.

Write units are counted twice over. *Computed*, by AWS's documented rule: a write costs one unit for each begun KB of the item, as it was or as it becomes,
whichever is larger; twice that inside a transaction, where a condition check costs as much as a write of the item would, as the real service was seen to
bill it. *Answered*, where the double states them: the proxy adds `ReturnConsumedCapacity` to each request. (A body can be changed on its way as doubles
check no signatures.) DynamoDB Local since 3.0 states about 2 units for a whole transaction, a known fault, and moto nothing: so what counts is what is computed.

Speed is not the point: one thread a connection, in the process of the benchmark.
"""

from __future__ import annotations

import base64
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import msgspec

UNIT_BYTES = 1024
TRANSACTION_FACTOR = 2
_SINGLE_WRITES = {"PutItem", "UpdateItem", "DeleteItem"}
_STATING = _SINGLE_WRITES | {"TransactWriteItems", "GetItem", "Query", "BatchGetItem"}  # these know ReturnConsumedCapacity
_PASSED_ON = {"content-type", "x-amz-target", "x-amz-date", "authorization", "user-agent", "x-amz-security-token"}

Item: TypeAlias = dict[str, dict[str, Any]]


class Counts(msgspec.Struct):
    """What has been asked until now. Units by kind of action: Put, Update, Delete, ConditionCheck, or the operation where there was no transaction."""

    requests: dict[str, int] = {}
    actions: dict[str, int] = {}
    units: dict[str, int] = {}
    units_answered: float = 0.0

    def since(self, before: Counts) -> Counts:
        """Return what came after an earlier count."""
        return Counts(
            requests=_less(self.requests, before.requests),
            actions=_less(self.actions, before.actions),
            units=_less(self.units, before.units),
            units_answered=self.units_answered - before.units_answered,
        )

    def copy(self) -> Counts:
        """Return the same, to keep."""
        return self.since(Counts())


def _less(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in now.items()}


class Ledger:
    """Counts requests. Knows how large each item is that went by."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def asked(self, operation: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note a request that was carried out."""
        with self._lock:
            self._add(self.counts.requests, operation, 1)
            if operation == "TransactWriteItems":
                for action in request["TransactItems"]:
                    ((kind, detail),) = action.items()
                    self._write(kind, detail, TRANSACTION_FACTOR)
            elif operation in _SINGLE_WRITES:
                self._write(operation, request, 1)
            stated = answer.get("ConsumedCapacity")
            if stated and (operation == "TransactWriteItems" or operation in _SINGLE_WRITES):
                for each in stated if isinstance(stated, list) else [stated]:
                    self.counts.units_answered += each.get("CapacityUnits", 0.0)

    def _write(self, kind: str, detail: dict[str, Any], factor: int) -> None:
        item: Item = detail.get("Item") or detail["Key"]
        name = "/".join(str(value) for key in ("pk", "sk") for value in item.get(key, {}).values())
        before = self._sizes.get(name, 0)
        after = size_of(item) if "Item" in detail else before + size_of(detail.get("ExpressionAttributeValues", {}))
        if kind.startswith("Delete"):
            self._sizes.pop(name, None)
        elif kind != "ConditionCheck":
            self._sizes[name] = size_of(item) if "Item" in detail else max(before, 1)
        self._add(self.counts.actions, kind, 1)
        self._add(self.counts.units, kind, factor * max(1, -(-max(before, after) // UNIT_BYTES)))

    @staticmethod
    def _add(counts: dict[str, int], name: str, more: int) -> None:
        counts[name] = counts.get(name, 0) + more


def size_of(item: Item) -> int:
    """Return the bytes of an item as AWS counts them, a number as at most a byte for two digits and one more."""
    total = 0
    for name, value in item.items():
        ((kind, content),) = value.items()
        total += len(name.encode())
        if kind == "S":
            total += len(content.encode())
        elif kind == "B":
            total += len(base64.b64decode(content))
        elif kind == "N":
            total += (len(content) + 1) // 2 + 1
        else:
            total += 1
    return total


class CountingProxy:
    """The proxy, from its making to `close`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._ledger = Ledger()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(target, self._ledger))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def counts(self) -> Counts:
        """Return what was counted until now."""
        return self._ledger.counts.copy()

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(target: tuple[str, int], ledger: Ledger) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.onward = http.client.HTTPConnection(*target, timeout=60)

        def finish(self) -> None:
            self.onward.close()
            super().finish()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            request = msgspec.json.decode(body, type=dict[str, Any])
            if operation in _STATING:
                body = msgspec.json.encode(request | {"ReturnConsumedCapacity": "TOTAL"})
            headers = {name: value for name, value in self.headers.items() if name.lower() in _PASSED_ON}
            try:
                self.onward.request("POST", self.path, body, headers)
                answer = self.onward.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self.close_connection = True  # which is what the store would see
                return
            if answer.status == http.HTTPStatus.OK:
                ledger.asked(operation, request, msgspec.json.decode(content, type=dict[str, Any]))
            kind = answer.headers.get("Content-Type", "application/x-amz-json-1.0")
            head = f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content)

        def log_message(self, *_: object) -> None:  # it would go to standard error
            return

    return Handler
