"""One connection to the Redis that has one shard's keys: what is sent is sent once.

The driver's client would send a command again after a lost connection. A batch must not be: the first one may have been written, and the second would find
its rows there. So this talks through the driver's connection, which makes no second try, and the deadlines are its own.

Only a call that the server surely did not run is repeated: a script that it does not know (NOSCRIPT: sent again with its text), and in a cluster a
command that belongs to another node (MOVED, ASK). All keys of a shard have one hash tag, so at any time one node has them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeAlias

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AskError, MovedError, RedisError

from proteus_shards.store.redis_errors import ServerSaid, Unanswered, Unreached, code_of, unreached
from proteus_shards.store.redis_url import RedisUrl

REDIRECTS_MAX = 5
ANSWER_SHARE = 0.8  # of the time of a call, for the replicas to answer in: the server tells how many did before we stop listening
READ_BYTES = 256 * 1024  # asked of the socket at once

Node: TypeAlias = tuple[str, int]
Argument: TypeAlias = bytes | str | int
Command: TypeAlias = tuple[Argument, ...]


class Script:
    """A script of one of the .lua files."""

    def __init__(self, name: str) -> None:
        self.text = files("proteus_shards.store").joinpath(f"redis_{name}.lua").read_bytes()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], *arguments: Argument) -> tuple[Command, Command]:
        """Return the command that runs it where it is known, and the one that brings it along."""
        rest = (len(keys), *keys, *arguments)
        return ("EVALSHA", self.sha, *rest), ("EVAL", self.text, *rest)


class Wire:
    """A connection. Calls raise `WireError`s; `asyncio.timeout` around a call ends the connection with it."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._seeds: list[Node] = list(url.nodes)
        self._connection: Any = None
        self._known: set[str] = set()  # the scripts that this connection has brought along
        self.node: Node | None = None

    @property
    def usable(self) -> bool:
        """Whether there is a connection that has not been seen to end. Where there is none, nothing is under way either."""
        reader = getattr(self._connection, "_reader", None)  # the driver has no word for it that does not wait
        return reader is not None and not reader.at_eof() and reader.exception() is None

    async def connect(self) -> None:
        """Connect to whichever node answers first: the last one, or those of the URL in turn."""
        await self.close()
        fault = Unreached("no node to connect to")
        for node in dict.fromkeys([*([self.node] if self.node else []), *self._seeds]):
            try:
                self._connection = await self._connected(node)
            except Unreached as error:
                fault = error
                if error.lasting:
                    break
            else:
                self.node = node
                return
        raise fault

    async def close(self) -> None:
        """End the connection. Safe to call at any time."""
        connection, self._connection = self._connection, None
        self._known.clear()
        if connection is not None:
            writer = getattr(connection, "_writer", None)
            if self._url.tls is not None and writer is not None:
                writer.transport.abort()  # an orderly end of TLS takes the peer's answer, for which the loop may not live long enough
            await connection.disconnect(nowait=True)

    async def call(self, *command: Argument) -> Any:
        """Send one command and return its answer."""
        (answer,) = await self.call_all([command])
        return answer

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument, after: Sequence[Command] = ()) -> list[Any]:
        """Run a script, then some commands behind it in the same breath; return all answers."""
        known, whole = script.call(keys, *arguments)
        answers = await self._answers([known if script.sha in self._known else whole, *after])
        self._known.add(script.sha)
        if isinstance(answers[0], RedisError) and code_of(answers[0]) == "NOSCRIPT":
            answers = await self._answers([whole, *after])
        if not isinstance(answers[0], RedisError) and any(isinstance(answer, RedisError) for answer in answers):
            raise Unanswered("the script was run, but not what was to follow it")
        return without_errors(answers)

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together and return their answers. Raises for the first that is an error, once all are read."""
        return without_errors(await self._answers(commands))

    async def try_all(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together and return their answers, errors of the driver's among them. Sent on, in a cluster, only where the first must be."""
        return await self._answers(commands)

    async def learn_nodes(self) -> None:
        """In a cluster, ask for all nodes, so that the loss of those of the URL is no loss of the way."""
        if self._url.cluster:
            found = [(node[0].decode(), node[1]) for entry in await self.call("CLUSTER", "SLOTS") for node in entry[2:] if node[0]]
            self._seeds = list(dict.fromkeys([*self._url.nodes, *found]))

    async def _answers(self, commands: Sequence[Command]) -> list[Any]:
        """Return all answers, errors too, from the node that the first command belongs to."""
        asking = False
        for _ in range(REDIRECTS_MAX):
            answers = await self._exchange([("ASKING",), *commands] if asking else commands)
            answers = answers[1:] if asking else answers
            first = answers[0]
            if not (self._url.cluster and isinstance(first, AskError)):  # MovedError is one
                return answers
            asking = not isinstance(first, MovedError)
            await self._go_to((first.host or (self.node or ("", 0))[0], first.port))
        raise Unreached(f"the cluster sent us on {REDIRECTS_MAX} times")

    async def _go_to(self, node: Node) -> None:
        await self.close()
        self._connection = await self._connected(node)
        self.node = node

    async def _connected(self, node: Node) -> Any:
        url = self._url
        common: dict[str, Any] = {
            "db": url.database,
            "username": url.user,
            "password": url.password,
            "socket_timeout": None,
            "socket_connect_timeout": url.connect_seconds,
            "socket_read_size": READ_BYTES,
            "protocol": 2,
        }
        connection: Any
        if url.socket is not None:
            connection = UnixDomainSocketConnection(path=url.socket, **common)
        elif url.tls is None:
            connection = Connection(host=node[0], port=node[1], **common)
        else:
            tls = url.tls
            connection = SSLConnection(
                host=node[0],
                port=node[1],
                ssl_ca_certs=tls.ca,
                ssl_certfile=tls.cert,
                ssl_keyfile=tls.key,
                ssl_cert_reqs="required" if tls.verify else "none",
                ssl_check_hostname=tls.verify,
                **common,
            )
        try:
            async with asyncio.timeout(url.connect_seconds):
                await connection.connect()
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            code = code_of(error) if isinstance(error, RedisError) else None
            raise (unreached(error, url.connect_seconds, tls=url.tls is not None) if code is None else ServerSaid(code)) from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        if connection is None or not self.usable:
            await self.close()
            raise Unreached("the connection is gone")
        try:
            packed = [piece for command in commands for piece in connection.pack_command(*command)]
            await connection.send_packed_command(packed, check_health=False)
            return [await _answer(connection) for _ in commands]
        except (RedisError, OSError) as error:
            await self.close()
            raise Unanswered("the connection was lost before an answer came") from error
        except BaseException:
            await self.close()
            raise


async def _answer(connection: Any) -> Any:
    """Return an answer, an error too."""
    try:
        return await connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except RedisError as error:
        if code_of(error) is None:
            raise
        return error


def waiting_for_replicas(url: RedisUrl) -> list[Command]:
    """Return what is to be sent behind a change: where the URL asks for it, a wait, whose answer is how many replicas have the change."""
    return [("WAIT", url.wait_replicas, int(url.timeout_seconds * ANSWER_SHARE * 1000))] if url.wait_replicas else []


def without_errors(answers: list[Any]) -> list[Any]:
    """Return answers, or raise for the first that is an error."""
    for answer in answers:
        if isinstance(answer, RedisError):
            raise ServerSaid(code_of(answer) or "ERR") from None
    return answers


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give what is done inside so much time; afterwards it is `Unanswered`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unanswered(f"no answer within {seconds:g} s") from None
