"""A strict double of DynamoDB: an HTTP server in a process of its own, with faults on demand and data that survive its end.

What a request does is decided in `strict_dynamodb_table.py`; this file reads HTTP, keeps a log on disk (one line for each atomic change, read again
at the next start), and does what the test asked for. A test asks through `StrictServer.fault`: the next calls of an operation are

* `throttle`, `refuse` (any code), `cancel` (a transaction, for a reason): not done, and told so;
* `fail`: not done, answered 500; `fail_after`: done, answered 500;
* `drop`: not done, the connection closed; `lose`: done, the connection closed, with `forget` its token forgotten, too;
* `late`: done only when `release` is called, as if it had been on its way until then;
* `hold`: begun, and finished only when `release` is called; `mute`: done, never answered;
* `unprocessed`: a BatchGetItem that gives only so many keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tests.conftest import server_environ
from tests.servers.dynamodb import Process, pretend_credentials
from tests.servers.strict_dynamodb_table import Item, Key, Refusal, Tables, cancelled, invalid

CONTROL = "/control"
REQUEST_BYTES_MAX = 16 * 1024 * 1024
CREATING_DESCRIBES = 1  # how often a new table is said to be CREATING

_ONE = {"PutItem": "Put", "DeleteItem": "Delete", "UpdateItem": "Update"}


class Gone(Exception):
    """The connection is to be closed without an answer."""


class Double:
    """The server."""

    def __init__(self, log_path: Path) -> None:
        self.tables = Tables()
        self.creating: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.released = asyncio.Event()
        self.holding = 0
        self.credential = ""  # the key id of the last call
        self._read_log(log_path)
        self._log = log_path.open("a", encoding="utf-8")

    # --- the log

    def _read_log(self, path: Path) -> None:
        if not path.exists():
            return
        whole = path.read_text(encoding="utf-8")
        whole = whole[: whole.rfind("\n") + 1]
        path.write_text(whole, encoding="utf-8")  # without a last line that was cut off
        for line in whole.splitlines():
            entry = json.loads(line)
            if "table" in entry:
                self.tables.add(entry["table"])
            else:
                self.tables.apply([((key[0], key[1], key[2]), item) for key, item in entry["changes"]])
                self.tables.tokens.update({token: (what, when) for token, (what, when) in entry["tokens"].items()})

    def _write_log(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()

    def _change(self, changes: list[tuple[Key, Item | None]], transaction: dict[str, Any] | None = None) -> None:
        tokens = {}
        if transaction is not None:
            self.tables.remember(transaction, time.time())
            token = transaction["ClientRequestToken"]
            tokens[token] = self.tables.tokens[token]
        self._write_log({"changes": changes, "tokens": tokens})
        self.tables.apply(changes)

    # --- calls

    async def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do one call, as well as the test lets it."""
        self.calls[operation] += 1
        fault = self._fault_for(operation)
        kind = fault["kind"] if fault is not None else ""
        if fault is not None:
            self._refuse(kind, fault, request)
        if kind == "late":
            self.holding += 1
            await self.released.wait()
            self.holding -= 1
        answer = await self._do(operation, request, fault)
        if kind == "fail_after":
            raise Refusal("InternalServerError", status=500)
        if kind == "lose":
            if fault is not None and fault.get("forget"):
                self.tables.tokens.clear()
            raise Gone
        if kind == "mute":
            await self.released.wait()
            raise Gone
        return answer

    def _fault_for(self, operation: str) -> dict[str, Any] | None:
        for fault in self.faults:
            if fault["operation"] in {operation, "*"} and fault["times"] > 0:
                fault["times"] -= 1
                return fault
        return None

    @staticmethod
    def _refuse(kind: str, fault: dict[str, Any], request: dict[str, Any]) -> None:
        if kind == "throttle":
            raise Refusal("ProvisionedThroughputExceededException", "slower, please")
        if kind == "refuse":
            raise Refusal(fault["code"], "secret-of-the-service AKIATESTTESTTESTTEST")
        if kind == "cancel":
            raise cancelled([fault["code"], *["None"] * (len(request["TransactItems"]) - 1)])
        if kind == "fail":
            raise Refusal("InternalServerError", status=500)
        if kind == "drop":
            raise Gone

    async def _do(self, operation: str, request: dict[str, Any], fault: dict[str, Any] | None) -> dict[str, Any]:
        tables = self.tables
        if operation in {"CreateTable", "DescribeTable"}:
            return self._table(operation, request)
        for name in {request["TableName"]} if "TableName" in request else ():
            if self.creating[name] > 0:
                raise Refusal("ResourceNotFoundException", "the table is not active")
        match operation:
            case "GetItem":
                return tables.get_item(request)
            case "Query":
                return tables.query(request)
            case "BatchGetItem":
                return tables.batch_get(request, fault["keys"] if fault is not None and fault["kind"] == "unprocessed" else None)
            case "PutItem" | "DeleteItem" | "UpdateItem":
                self._change(tables.write_one(_ONE[operation], request))
                return {}
            case "TransactWriteItems":
                await self._transact(request, held=fault is not None and fault["kind"] == "hold")
                return {}
        if operation == "DescribeContinuousBackups":
            return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": {"PointInTimeRecoveryStatus": "DISABLED"}}}
        raise Refusal("UnknownOperationException", operation)

    async def _transact(self, request: dict[str, Any], *, held: bool) -> None:
        if not self.tables.begin(request, time.time()):
            return
        if held:
            self.holding += 1
            await self.released.wait()
            self.holding -= 1
        else:
            await asyncio.sleep(0)
        self._change(self.tables.finish(request), request)

    def _table(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TableName"]
        if operation == "CreateTable":
            self.tables.check_new(request)
            self._write_log({"table": request})
            self.tables.add(request)
            self.creating[name] = CREATING_DESCRIBES
            return {"TableDescription": self._describe(name)}
        self.tables.check_table(name)
        self.creating[name] = max(0, self.creating[name] - 1)
        return {"Table": self._describe(name)}

    def _describe(self, name: str) -> dict[str, Any]:
        request = self.tables.tables[name]
        return {
            **{key: request[key] for key in ("TableName", "KeySchema", "AttributeDefinitions")},
            "TableStatus": "CREATING" if self.creating[name] else "ACTIVE",
            "BillingModeSummary": {"BillingMode": request.get("BillingMode", "PROVISIONED")},
            "ProvisionedThroughput": request.get("ProvisionedThroughput", {"ReadCapacityUnits": 0, "WriteCapacityUnits": 0}),
            "DeletionProtectionEnabled": False,
        }

    # --- what the test asks

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what the test asks, and tell how things stand."""
        if "fault" in request:
            self.faults.append(request["fault"])
            self.released.clear()
        if request.get("release"):
            self.faults.clear()
            self.released.set()
        if request.get("reset"):
            self.calls.clear()
            self.tables.write_units = self.tables.read_units = 0
        for key, item in request.get("changes", ()):
            self._change([((key[0], key[1], key[2]), item)])
        if "table" in request:  # one of another kind
            keys = {
                "KeySchema": [{"AttributeName": "other", "KeyType": "HASH"}],
                "AttributeDefinitions": [{"AttributeName": "other", "AttributeType": "S"}],
            }
            self.tables.add({"TableName": request["table"], "BillingMode": "PAY_PER_REQUEST", **keys})
        items = self.tables.items.get(request.get("items", ""), {})
        return {
            "table": self._describe(request["describe"]) if "describe" in request else None,
            "calls": self.calls,
            "write_units": self.tables.write_units,
            "read_units": self.tables.read_units,
            "holding": self.holding,
            "credential": self.credential,
            "items": {pk: partition for pk, partition in items.items() if partition},
        }

    # --- HTTP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, Gone):
            while True:
                path, headers, body = await _read_request(reader)
                try:
                    answer = await self._answer(path, headers, body)
                    status = 200
                except Refusal as refusal:
                    status = refusal.status
                    kind = f"com.amazonaws.dynamodb.v20120810#{refusal.code}"
                    answer = {"__type": kind, "message": refusal.message, **refusal.more}
                data = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(data)}\r\n"
                writer.write(f"{head}Date: {formatdate(usegmt=True)}\r\n\r\n".encode() + data)
                await writer.drain()
        writer.close()

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if path == CONTROL:
            return self.control(json.loads(body))
        version, _, operation = headers.get("x-amz-target", "").partition(".")
        if version != "DynamoDB_20120810" or not headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            raise Refusal("MissingAuthenticationTokenException")
        self.credential = headers["authorization"].partition("Credential=")[2].partition("/")[0]
        if len(body) > REQUEST_BYTES_MAX:
            raise Refusal("RequestEntityTooLarge", status=413)
        try:
            request = json.loads(body)
            body.decode()
        except ValueError:
            raise Refusal("SerializationException") from None
        if b"\\ud8" in body.lower():
            raise invalid("not unicode")
        return await self.call(operation, request)


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, Mapping[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return first.split(" ")[1], headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def run(port: int, log_path: Path, address: str) -> None:
    """Serve until standard input closes."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(0, ended.set)
    double = Double(log_path)
    server = await asyncio.start_server(double.serve, address, port)
    await ended.wait()
    server.close()


class StrictServer(Process):
    """The double as a process. `kill` and `start` keep its data."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        super().__init__(folder / "log")
        folder.mkdir(parents=True, exist_ok=True)
        self._data = folder / "data"
        self._address = address  # that it listens on; with 0.0.0.0 loopback is among them, which `ask` and `start` need

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.servers.strict_dynamodb", str(self.port), str(self._data), self._address]

    def environ(self) -> Mapping[str, str]:
        pretend_credentials()
        return server_environ({})

    def fault(self, operation: str, kind: str, times: int = 1, **more: Any) -> None:
        """Let the next calls of an operation ("*": of any) go wrong."""
        self.ask(fault={"operation": operation, "kind": kind, "times": times, **more})

    def release(self) -> None:
        """Let what is held go on, and nothing more go wrong."""
        self.ask(release=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the double for something, and return how things stand."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", CONTROL, json.dumps(request))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
    os._exit(0)
