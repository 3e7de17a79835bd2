"""What a table of DynamoDB does with a request, as AWS documents it, and as strictly: the half of the strict double that does no IO.

Strict means: limits are counted to the byte, an expression that is not of the few forms that are used here is refused, as are names and values that
no expression uses; a read that is not strongly consistent is refused (no recovery may rest on one).

A transaction has two halves, so that others meet it in the middle: `begin` locks its items, `finish` applies or cancels it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, TypeAlias

Item: TypeAlias = dict[str, dict[str, Any]]
Key: TypeAlias = tuple[str, str, str]  # table, pk, sk

ITEM_BYTES_MAX = 400 * 1024
TRANSACTION_BYTES_MAX = 4 * 1024 * 1024
PAGE_BYTES_MAX = 1024 * 1024
BATCH_GET_BYTES_MAX = 16 * 1024 * 1024
TOKEN_SECONDS = 600.0

_FUNCTION = re.compile(r"(attribute_exists|attribute_not_exists)\(\s*([#\w]+)\s*\)")
_EQUAL = re.compile(r"([#\w]+)\s*=\s*(:\w+)")
_UNEQUAL = re.compile(r"([#\w]+)\s*<>\s*(:\w+)")
_RANGE = re.compile(r"pk\s*=\s*(:\w+)\s+AND\s+sk\s+BETWEEN\s+(:\w+)\s+AND\s+(:\w+)")
_CLAUSE = re.compile(r"\b(SET|REMOVE|ADD)\b")


class Refusal(Exception):
    """An error that the service answers with."""

    def __init__(self, code: str, message: str = "", status: int = 400, **more: Any) -> None:
        super().__init__(code, message)
        self.code, self.message, self.status, self.more = code, message, status, more


def invalid(message: str) -> Refusal:
    """Return the error of a request that makes no sense."""
    return Refusal("ValidationException", message)


# --- sizes -----------------------------------------------------------------------------------------------------------


def value_bytes(value: dict[str, Any]) -> int:
    """Return the size of a value of an attribute."""
    ((kind, held),) = value.items()
    if kind == "S":
        return len(str(held).encode())
    if kind == "B":
        text = str(held)
        return len(text) // 4 * 3 - text.count("=", -2)
    if kind == "N":
        digits = str(held).lstrip("-").strip("0")
        return (len(digits) + 1) // 2 + 1 + str(held).startswith("-")
    if kind == "BOOL":
        return 1
    raise invalid(f"the type {kind} is not used here")


def item_bytes(item: Item | None) -> int:
    """Return the size of an item."""
    return 0 if item is None else sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


# --- expressions -----------------------------------------------------------------------------------------------------


class Words:
    """The names and values of a request, each to be used."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._names: dict[str, str] = request.get("ExpressionAttributeNames", {})
        self._values: dict[str, dict[str, Any]] = request.get("ExpressionAttributeValues", {})
        self._used: set[str] = set()
        if ("ExpressionAttributeNames" in request and not self._names) or ("ExpressionAttributeValues" in request and not self._values):
            raise invalid("ExpressionAttributeNames and ExpressionAttributeValues must not be empty")

    def name(self, word: str) -> str:
        """Return the attribute that a word names."""
        if not word.startswith("#"):
            if word in {"status", "timeout", "state", "owner"}:
                raise invalid(f"{word} is a reserved word")
            return word
        self._used.add(word)
        if word not in self._names:
            raise invalid(f"{word} is not defined")
        return self._names[word]

    def value(self, word: str) -> dict[str, Any]:
        """Return the value that a word stands for."""
        self._used.add(word)
        if word not in self._values:
            raise invalid(f"{word} is not defined")
        return self._values[word]

    def finish(self) -> None:
        """Refuse what was not used."""
        if unused := ({*self._names, *self._values} - self._used):
            raise invalid(f"unused in expressions: {sorted(unused)}")


def holds(condition: str | None, item: Item | None, words: Words) -> bool:
    """Say whether a condition holds of an item."""
    verdict = True
    for part in condition.split(" AND ") if condition is not None else ():
        if found := _FUNCTION.fullmatch(part.strip()):
            there = item is not None and words.name(found[2]) in item
            verdict &= there == (found[1] == "attribute_exists")
        elif found := _EQUAL.fullmatch(part.strip()):
            name, value = words.name(found[1]), words.value(found[2])
            verdict &= item is not None and name in item and item[name] == value
        elif found := _UNEQUAL.fullmatch(part.strip()):  # which holds where there is none
            name, value = words.name(found[1]), words.value(found[2])
            verdict &= item is None or item.get(name) != value
        else:
            raise invalid(f"a condition that is not understood: {part}")
    return verdict


def updated(expression: str, key: Item, item: Item | None, words: Words) -> Item:
    """Return what an update makes of an item."""
    result = dict(item if item is not None else key)
    parts = _CLAUSE.split(expression)
    if parts[0].strip():
        raise invalid("an update that begins with no clause")
    touched: set[str] = set()
    for clause, body in zip(parts[1::2], parts[2::2], strict=True):
        for action in body.split(","):
            words_of = action.replace("=", " ").split()
            name = words.name(words_of[0])
            if name in touched or name in key:
                raise invalid(f"{name} is changed twice, or is part of the key")
            touched.add(name)
            if clause == "REMOVE":
                result.pop(name, None)
            elif clause == "SET":
                result[name] = words.value(words_of[1])
            else:
                added = int(words.value(words_of[1])["N"])
                result[name] = {"N": str(int(result.get(name, {"N": "0"})["N"]) + added)}
    return result


# --- tables ----------------------------------------------------------------------------------------------------------


class Tables:
    """All tables of one double. Changes are lists of `(key, item or None)`, which the caller writes down before it applies them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}
        self.items: dict[str, dict[str, dict[str, Item]]] = {}
        self.tokens: dict[str, tuple[str, float]] = {}  # digest of the request, when
        self.running: set[str] = set()  # tokens of transactions under way
        self.locked: set[Key] = set()
        self.write_units = 0
        self.read_units = 0

    # --- what is there

    def get(self, key: Key) -> Item | None:
        """Return an item."""
        return self.items[key[0]].get(key[1], {}).get(key[2])

    def apply(self, changes: list[tuple[Key, Item | None]]) -> None:
        """Put changes into effect."""
        for (table, pk, sk), item in changes:
            partition = self.items[table].setdefault(pk, {})
            if item is None:
                partition.pop(sk, None)
            else:
                partition[sk] = item

    def add(self, request: dict[str, Any]) -> None:
        """Put a new table into effect."""
        self.tables[request["TableName"]] = request
        self.items.setdefault(request["TableName"], {})

    def check_new(self, request: dict[str, Any]) -> None:
        """Refuse what cannot be a new table."""
        if request["TableName"] in self.tables:
            raise Refusal("ResourceInUseException", "the table exists")
        provisioned = request.get("BillingMode", "PROVISIONED") == "PROVISIONED"
        if provisioned != ("ProvisionedThroughput" in request):
            raise invalid("throughput goes with provisioned billing")
        if {each["AttributeName"] for each in request["KeySchema"]} != {each["AttributeName"] for each in request["AttributeDefinitions"]}:
            raise invalid("keys and definitions differ")

    def check_table(self, name: str) -> None:
        """Refuse a table that is not there."""
        if name not in self.tables:
            raise Refusal("ResourceNotFoundException", "Requested resource not found")

    def key(self, table: str, key: Item) -> Key:
        """Return a key, checked."""
        self.check_table(table)
        if set(key) != {"pk", "sk"} or any(set(value) != {"S"} or not value["S"] for value in key.values()):
            raise invalid("The provided key element does not match the schema")
        pk, sk = key["pk"]["S"], key["sk"]["S"]
        if len(pk.encode()) > 2048 or len(sk.encode()) > 1024:
            raise invalid("a key is too long")
        return table, pk, sk

    # --- reading

    def get_item(self, request: dict[str, Any]) -> dict[str, Any]:
        """GetItem."""
        _check_consistent(request)
        item = self.get(self.key(request["TableName"], request["Key"]))
        self.read_units += max(1, -(-item_bytes(item) // 4096))
        return {} if item is None else {"Item": item}

    def query(self, request: dict[str, Any]) -> dict[str, Any]:
        """Query, a page of at most 1 MB."""
        _check_consistent(request)
        self.check_table(request["TableName"])
        words = Words(request)
        found = _RANGE.fullmatch(request["KeyConditionExpression"].strip())
        if found is None:
            raise invalid("a key condition that is not understood")
        pk, low, high = (words.value(word)["S"] for word in found.groups())
        words.finish()
        after = request.get("ExclusiveStartKey", {}).get("sk", {}).get("S")
        partition = self.items[request["TableName"]].get(pk, {})
        first, last = low.encode(), high.encode()
        if first > last:
            raise invalid("the lower bound is above the upper one")
        keys = sorted(sk for sk in partition if first <= sk.encode() <= last and (after is None or sk.encode() > after.encode()))
        page: list[Item] = []
        size = 0
        for sk in keys:
            size += item_bytes(partition[sk])
            page.append(partition[sk])
            if size >= PAGE_BYTES_MAX:
                break
        self.read_units += max(1, -(-size // 4096))
        answer: dict[str, Any] = {"Items": page, "Count": len(page), "ScannedCount": len(page)}
        if size >= PAGE_BYTES_MAX:  # even where nothing is behind it, as AWS may do
            answer["LastEvaluatedKey"] = {"pk": {"S": pk}, "sk": page[-1]["sk"]}
        return answer

    def batch_get(self, request: dict[str, Any], keys_max: int | None) -> dict[str, Any]:
        """BatchGetItem. What is beyond 16 MB, or beyond `keys_max`, is left unprocessed."""
        ((table, asked),) = request["RequestItems"].items()
        _check_consistent(asked)
        keys = [self.key(table, key) for key in asked["Keys"]]
        if not 0 < len(keys) <= 100 or len(set(keys)) < len(keys):
            raise invalid("1 to 100 keys, each once")
        items: list[Item] = []
        size = 0
        left = list(asked["Keys"])
        for key in keys:
            item = self.get(key)
            size += item_bytes(item)
            if size > BATCH_GET_BYTES_MAX or (keys_max is not None and len(keys) - len(left) >= keys_max):
                break
            left.pop(0)
            self.read_units += max(1, -(-item_bytes(item) // 4096))
            if item is not None:
                items.append(item)
        answer: dict[str, Any] = {"Responses": {table: items}, "UnprocessedKeys": {}}
        if left:
            answer["UnprocessedKeys"] = {table: {**asked, "Keys": left}}
        return answer

    # --- writing

    def write_one(self, kind: str, request: dict[str, Any]) -> list[tuple[Key, Item | None]]:
        """PutItem, DeleteItem, UpdateItem: return what they change."""
        key, before, after, met = self._action(kind, request)
        if key in self.locked:
            raise Refusal("TransactionConflictException", "Transaction is ongoing for the item")
        if not met:
            raise Refusal("ConditionalCheckFailedException", "The conditional request failed")
        if item_bytes(after) > ITEM_BYTES_MAX:
            raise invalid("Item size has exceeded the maximum allowed size")
        self.write_units += _units(before, after)
        return [(key, after)]

    def begin(self, request: dict[str, Any], now: float) -> bool:
        """Begin a transaction: lock its items. Returns False where its token says that it was done."""
        actions = request["TransactItems"]
        if not 1 <= len(actions) <= 100:
            raise invalid("Member must have length less than or equal to 100")
        self._check_token(request, now)
        token = request.get("ClientRequestToken", "")
        if token in self.tokens:
            return False
        keys = [self._key_of(action) for action in actions]
        if len(set(keys)) < len(keys):
            raise invalid("Transaction request cannot include multiple operations on one item")
        reasons = ["TransactionConflict" if key in self.locked else "None" for key in keys]
        if set(reasons) != {"None"}:
            raise cancelled(reasons)
        self.locked |= set(keys)
        self.running.add(token)
        return True

    def finish(self, request: dict[str, Any]) -> list[tuple[Key, Item | None]]:
        """Return what a transaction changes. Its items are unlocked, whether it is done or cancelled."""
        actions = request["TransactItems"]
        self.running.discard(request.get("ClientRequestToken", ""))
        self.locked -= {self._key_of(action) for action in actions}
        reasons: list[str] = []
        changes: list[tuple[Key, Item | None]] = []
        size = units = 0
        for action in actions:
            ((kind, body),) = action.items()
            key, before, after, met = self._action(kind, body)
            too_large = item_bytes(after) > ITEM_BYTES_MAX
            reasons.append("ConditionalCheckFailed" if not met else "ValidationError" if too_large else "None")
            size += max(item_bytes(before), item_bytes(after))
            units += 2 * _units(before, after)
            if kind != "ConditionCheck":
                changes.append((key, after))
        if size > TRANSACTION_BYTES_MAX:
            raise invalid(f"the items of the transaction have {size} bytes together")
        if set(reasons) != {"None"}:
            raise cancelled(reasons)
        self.write_units += units
        return changes

    def remember(self, request: dict[str, Any], now: float) -> None:
        """Remember the token of a transaction that was done."""
        self.tokens[request["ClientRequestToken"]] = (digest(request), now)

    def _check_token(self, request: dict[str, Any], now: float) -> None:
        token = request.get("ClientRequestToken")
        if not isinstance(token, str) or not 1 <= len(token) <= 36:
            raise invalid("a transaction without a token: a lost answer could not be asked for again")
        if token in self.running:
            raise Refusal("TransactionInProgressException", "The transaction with the given request token is already in progress")
        self.tokens = {key: (what, when) for key, (what, when) in self.tokens.items() if now - when < TOKEN_SECONDS}
        if token in self.tokens and self.tokens[token][0] != digest(request):
            raise Refusal("IdempotentParameterMismatchException", "the token was used for something else")

    def _key_of(self, action: dict[str, Any]) -> Key:
        ((kind, body),) = action.items()
        source = body["Item"] if kind == "Put" else body["Key"]
        return self.key(body["TableName"], {name: source[name] for name in ("pk", "sk") if name in source} if kind == "Put" else source)

    def _action(self, kind: str, body: dict[str, Any]) -> tuple[Key, Item | None, Item | None, bool]:
        """Return an action's key, its item before and after, and whether its condition holds."""
        key = self._key_of({kind: body})
        words = Words(body)
        before = self.get(key)
        met = holds(body.get("ConditionExpression"), before, words)
        after: Item | None = before
        if kind == "Put":
            after = body["Item"]
        elif kind == "Delete":
            after = None
        elif kind == "Update":
            after = updated(body["UpdateExpression"], body["Key"], before, words)
        elif kind != "ConditionCheck":
            raise invalid(f"no such action: {kind}")
        words.finish()
        return key, before, after, met


def cancelled(reasons: list[str]) -> Refusal:
    """Return the error of a cancelled transaction."""
    listed = [{"Code": reason} if reason == "None" else {"Code": reason, "Message": "as told"} for reason in reasons]
    return Refusal("TransactionCanceledException", f"Transaction cancelled [{', '.join(reasons)}]", CancellationReasons=listed)


def digest(request: dict[str, Any]) -> str:
    """Return what tells one request from another."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _units(before: Item | None, after: Item | None) -> int:
    return max(1, -(-max(item_bytes(before), item_bytes(after)) // 1024))


def _check_consistent(request: dict[str, Any]) -> None:
    if request.get("ConsistentRead") is not True:
        raise invalid("a read that is not strongly consistent")
