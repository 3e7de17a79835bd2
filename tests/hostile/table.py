"""Raw HTTP/1 requests on which parsers have been known to disagree, and what this server says to each.

`REFUSED` is answered with one refusal and the end of the connection; what follows it is never looked at. `LEGAL` looks odd and is answered as what
it is; what follows it is served. Every request here goes to a route that the shard hears of, so that a test can count.
"""

from __future__ import annotations

from typing import NamedTuple

HOST = b"Host: localhost\r\n"
JOB = b'{"id":"j","queue":"q","timeout":1}'
SMUGGLED = b"DELETE /complete?queue=q&job_id=smuggled HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
COMPLETE = b"DELETE /complete?queue=q&job_id=j"


class Refusal(NamedTuple):
    """A request that is refused. `served`: how many requests before it are answered well."""

    data: bytes
    status: int = 400
    served: int = 0


def post(*fields: bytes, body: bytes = JOB, line: bytes = b"POST /enqueue HTTP/1.1", host: bytes = HOST) -> bytes:
    """Return a request with fields, and a body however they frame it."""
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def get(*fields: bytes, line: bytes = COMPLETE + b" HTTP/1.1", host: bytes = HOST) -> bytes:
    """Return a request without a body."""
    return post(*fields, body=b"", line=line, host=host)


def chunked(body: bytes, *fields: bytes) -> bytes:
    """Return a request whose chunks are written by hand."""
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


LENGTH = b"Content-Length: %d" % len(JOB)
CHUNKED = b"Transfer-Encoding: chunked"
ONE_CHUNK = b"%x\r\n%s\r\n" % (len(JOB), JOB)
CHUNKS = ONE_CHUNK + b"0\r\n\r\n"

REFUSED: dict[str, Refusal] = {
    # the length of a body, said twice or so that it can be read two ways
    "CL.TE": Refusal(post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG")),
    "TE.CL": Refusal(post(CHUNKED, b"Content-Length: 4", body=b"5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n")),
    "CL.0 and TE": Refusal(post(b"Content-Length: 0", CHUNKED, body=CHUNKS)),
    "CL, CL equal": Refusal(post(LENGTH, LENGTH)),
    "CL, CL different": Refusal(post(b"Content-Length: 0", LENGTH)),
    "CL list": Refusal(post(b"Content-Length: %d, %d" % (len(JOB), len(JOB)))),
    "CL list with an empty element": Refusal(post(b"Content-Length: %d," % len(JOB))),
    "CL with a plus": Refusal(post(b"Content-Length: +%d" % len(JOB))),
    "CL negative": Refusal(post(b"Content-Length: -1")),
    "CL negative zero": Refusal(post(b"Content-Length: -0", body=b"")),
    "CL hexadecimal": Refusal(post(b"Content-Length: 0x22")),
    "CL with an underscore": Refusal(post(b"Content-Length: 3_4")),
    "CL with a fraction": Refusal(post(b"Content-Length: 34.0")),
    "CL with an exponent": Refusal(post(b"Content-Length: 3e1")),
    "CL empty": Refusal(post(b"Content-Length:")),
    "CL blank": Refusal(post(b"Content-Length:  \t ")),
    "CL beyond 64 bits": Refusal(post(b"Content-Length: 18446744073709551617")),
    "CL of forty digits": Refusal(post(b"Content-Length: " + b"0" * 38 + b"34")),
    "CL with a word": Refusal(post(b"Content-Length: 34 bytes")),
    "CL of two numbers": Refusal(post(b"Content-Length: 3 4")),
    "CL in other digits": Refusal(post("Content-Length: ٣٤".encode())),
    "CL with a NUL": Refusal(post(b"Content-Length: 34\x00")),
    "CL with a vertical tab": Refusal(post(b"Content-Length: \x0b34")),
    "CL with tabs around": Refusal(post(b"Content-Length: \t34\t")),
    "CL with blanks after it": Refusal(post(b"Content-Length: 34  ")),
    "CL folded": Refusal(post(b"Content-Length:\r\n 34")),
    "CL over the limit": Refusal(post(b"Content-Length: 100001", body=b""), 413),
    # codings
    "TE x": Refusal(post(b"Transfer-Encoding: xchunked", body=CHUNKS)),
    "TE gzip": Refusal(post(b"Transfer-Encoding: gzip", body=CHUNKS)),
    "TE identity": Refusal(post(b"Transfer-Encoding: identity", LENGTH)),
    "TE gzip, chunked": Refusal(post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS)),
    "TE chunked, identity": Refusal(post(b"Transfer-Encoding: chunked, identity", body=CHUNKS)),
    "TE chunked, chunked": Refusal(post(b"Transfer-Encoding: chunked, chunked", body=CHUNKS)),
    "TE twice": Refusal(post(CHUNKED, CHUNKED, body=CHUNKS)),
    "TE twice, one nonsense": Refusal(post(CHUNKED, b"Transfer-Encoding: cow", body=CHUNKS)),
    "TE empty": Refusal(post(b"Transfer-Encoding:", body=CHUNKS)),
    "TE empty and CL": Refusal(post(b"Transfer-Encoding:", LENGTH)),
    "TE with a comma": Refusal(post(b"Transfer-Encoding: ,chunked", body=CHUNKS)),
    "TE with a parameter": Refusal(post(b"Transfer-Encoding: chunked;q=1", body=CHUNKS)),
    "TE in quotes": Refusal(post(b'Transfer-Encoding: "chunked"', body=CHUNKS)),
    "TE with a vertical tab": Refusal(post(b"Transfer-Encoding: \x0bchunked", body=CHUNKS)),
    "TE with a form feed": Refusal(post(b"Transfer-Encoding: chunked\x0c", body=CHUNKS)),
    "TE with a NUL": Refusal(post(b"Transfer-Encoding: chunked\x00", body=CHUNKS)),
    "TE with a high space": Refusal(post(b"Transfer-Encoding: \xa0chunked", body=CHUNKS)),
    "TE with a bare CR": Refusal(post(b"Transfer-Encoding: chunked\r", body=CHUNKS)),
    "TE folded": Refusal(post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS)),
    "TE folded with a tab": Refusal(post(b"Transfer-Encoding:\r\n\tchunked", body=CHUNKS)),
    "TE behind a bare LF": Refusal(post(b"X: a\nTransfer-Encoding: chunked", body=CHUNKS)),
    "TE behind a bare CR": Refusal(post(b"X: a\rTransfer-Encoding: chunked", LENGTH)),
    "TE with a space before the colon": Refusal(post(b"Transfer-Encoding : chunked", LENGTH)),
    "TE with a tab before the colon": Refusal(post(b"Transfer-Encoding\t: chunked", LENGTH)),
    "TE with a space before its name": Refusal(post(LENGTH, b" Transfer-Encoding: chunked")),
    "TE in HTTP/1.0": Refusal(post(CHUNKED, body=CHUNKS, line=b"POST /enqueue HTTP/1.0")),
    "TE and CL in HTTP/1.0": Refusal(post(CHUNKED, LENGTH, body=CHUNKS, line=b"POST /enqueue HTTP/1.0")),
    # chunks
    "chunk extension": Refusal(chunked(b"22;a=b\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk extension without a name": Refusal(chunked(b"22;\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk extension with a line feed": Refusal(chunked(b"22;a\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk extension without an end": Refusal(chunked(b"22;" + b"a" * 1000)),
    "chunk extension on the last": Refusal(chunked(ONE_CHUNK + b"0;a=b\r\n\r\n")),
    "chunk size with a plus": Refusal(chunked(b"+22\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size negative": Refusal(chunked(b"-1\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with 0x": Refusal(chunked(b"0x22\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with an underscore": Refusal(chunked(b"2_2\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with a space before it": Refusal(chunked(b" 22\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with a space after it": Refusal(chunked(b"22 \r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with a tab": Refusal(chunked(b"22\t\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size empty": Refusal(chunked(b"\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size no number": Refusal(chunked(b"zz\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size beyond 32 bits": Refusal(chunked(b"100000022\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size beyond 64 bits": Refusal(chunked(b"10000000000000022\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk size with zeros without an end": Refusal(chunked(b"0" * 100)),
    "chunk size over the limit": Refusal(chunked(b"ffffffff\r\n" + b" " * 200_000), 413),
    "chunk line ended by LF": Refusal(chunked(b"22\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk line ended by CR": Refusal(chunked(b"22\r" + JOB + b"\r\n0\r\n\r\n")),
    "chunk data ended by LF": Refusal(chunked(b"22\r\n" + JOB + b"\n0\r\n\r\n")),
    "chunk data without an end": Refusal(chunked(b"22\r\n" + JOB + b"0\r\n\r\n")),
    "chunk data longer than said": Refusal(chunked(b"20\r\n" + JOB + b"\r\n0\r\n\r\n")),
    "chunk data ended by two other bytes": Refusal(chunked(b"22\r\n" + JOB + b"xx0\r\n\r\n")),
    "last chunk ended by LF": Refusal(chunked(ONE_CHUNK + b"0\n\n")),
    "last chunk and one LF": Refusal(chunked(ONE_CHUNK + b"0\r\n\n")),
    "last chunk and no end": Refusal(chunked(ONE_CHUNK + b"0\r\nG")),
    "trailer": Refusal(chunked(ONE_CHUNK + b"0\r\nX: a\r\n\r\n")),
    "trailer with a length": Refusal(chunked(ONE_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n")),
    # lines and fields
    "lines ended by LF": Refusal(b"POST /enqueue HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n"),
    "request line ended by LF": Refusal(b"POST /enqueue HTTP/1.1\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
    "request line ended by CR": Refusal(b"POST /enqueue HTTP/1.1\rHost: localhost\r\n\r\n"),
    "field ended by LF": Refusal(get(b"X: a\nY: b")),
    "head ended by LF": Refusal(COMPLETE + b" HTTP/1.1\r\nHost: localhost\r\n\n"),
    "bare CR in a value": Refusal(get(b"X: a\rb")),
    "folded field": Refusal(get(b"X: a\r\n b")),
    "folded first field": Refusal(COMPLETE + b" HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n"),
    "NUL in a value": Refusal(get(b"X: a\x00b")),
    "NUL in a name": Refusal(get(b"X\x00: a")),
    "control in a value": Refusal(get(b"X: a\x01b")),
    "delete in a value": Refusal(get(b"X: a\x7fb")),
    "control in a name": Refusal(get(b"X\x01: a")),
    "high byte in a name": Refusal(get(b"X\xc3\xa9: a")),
    "bracket in a name": Refusal(get(b"X(: a")),
    "space in a name": Refusal(get(b"X Y: a")),
    "space before the colon": Refusal(get(b"X : a")),
    "no colon": Refusal(get(b"nonsense")),
    "empty name": Refusal(get(b": a")),
    "colon only": Refusal(get(b":")),
    # hosts and targets
    "no host": Refusal(get(host=b"")),
    "two hosts": Refusal(get(host=HOST + HOST)),
    "two hosts, different": Refusal(get(host=HOST + b"Host: there\r\n")),
    "host with a space": Refusal(get(host=b"Host: localhost there\r\n")),
    "host with a path": Refusal(get(host=b"Host: localhost/there\r\n")),
    "host with a user": Refusal(get(host=b"Host: a@here\r\n")),
    "host with a comma and a space": Refusal(get(host=b"Host: localhost, there\r\n")),
    "host with a port that is none": Refusal(get(host=b"Host: localhost:80a\r\n")),
    "absolute form of another host": Refusal(get(line=b"DELETE http://there/complete?queue=q&job_id=j HTTP/1.1")),
    "absolute form with a user": Refusal(get(line=b"DELETE http://a@here/complete?queue=q&job_id=j HTTP/1.1")),
    "absolute form of another scheme": Refusal(get(line=b"DELETE ftp://localhost/complete?queue=q&job_id=j HTTP/1.1")),
    "absolute form without a host": Refusal(get(line=b"DELETE http:///complete?queue=q&job_id=j HTTP/1.1")),
    "authority form": Refusal(get(line=b"GET here:80 HTTP/1.1")),
    "asterisk": Refusal(get(line=b"GET * HTTP/1.1")),
    "fragment": Refusal(get(line=COMPLETE + b"#a HTTP/1.1")),
    "relative target": Refusal(get(line=b"DELETE complete?queue=q&job_id=j HTTP/1.1")),
    "empty target": Refusal(get(line=b"DELETE  HTTP/1.1")),
    "query only": Refusal(get(line=b"DELETE ?queue=q&job_id=j HTTP/1.1")),
    "raw high bytes in a target": Refusal(get(line=COMPLETE + b"\xc3\xa9 HTTP/1.1")),
    "control in a target": Refusal(get(line=COMPLETE + b"\x01 HTTP/1.1")),
    "NUL in a target": Refusal(get(line=COMPLETE + b"\x00 HTTP/1.1")),
    "delete in a target": Refusal(get(line=COMPLETE + b"\x7f HTTP/1.1")),
    "space in a target": Refusal(get(line=COMPLETE + b" a HTTP/1.1")),
    "proxy": Refusal(get(line=b"CONNECT here:80 HTTP/1.1"), 405),
    "long target": Refusal(get(line=COMPLETE + b"a" * 28_672 + b" HTTP/1.1"), 414),
    # request lines
    "HTTP/0.9": Refusal(COMPLETE + b"\r\n\r\n"),
    "HTTP/1": Refusal(get(line=COMPLETE + b" HTTP/1")),
    "HTTP/1.2": Refusal(get(line=COMPLETE + b" HTTP/1.2")),
    "HTTP/1.10": Refusal(get(line=COMPLETE + b" HTTP/1.10")),
    "HTTP/01.1": Refusal(get(line=COMPLETE + b" HTTP/01.1")),
    "HTTP/2.0": Refusal(get(line=COMPLETE + b" HTTP/2.0")),
    "http/1.1": Refusal(get(line=COMPLETE + b" http/1.1")),
    "HTTP/": Refusal(get(line=COMPLETE + b" HTTP/")),
    "ICE/1.1": Refusal(get(line=COMPLETE + b" ICE/1.1")),
    "two spaces": Refusal(get(line=b"DELETE  /complete?queue=q&job_id=j HTTP/1.1")),
    "tab": Refusal(get(line=b"DELETE\t/complete?queue=q&job_id=j HTTP/1.1")),
    "space at the end": Refusal(get(line=COMPLETE + b" HTTP/1.1 ")),
    "vertical tab": Refusal(get(line=COMPLETE + b"\x0bHTTP/1.1")),
    "leading line": Refusal(b"\r\n" + get()),
    "leading LF": Refusal(b"\n" + get()),
    "leading space": Refusal(b" " + get()),
    "byte order mark": Refusal(b"\xef\xbb\xbf" + get()),
    "lower case method": Refusal(get(line=b"delete /complete?queue=q&job_id=j HTTP/1.1")),
    "unknown method": Refusal(get(line=b"FETCH /complete?queue=q&job_id=j HTTP/1.1")),
    "long method": Refusal(get(line=b"D" * 5000 + b" /complete?queue=q&job_id=j HTTP/1.1")),
    "long method without an end": Refusal(b"D" * 40_000, 414),
    "preface with fields": Refusal(b"PRI * HTTP/2.0\r\nHost: localhost\r\n\r\n"),
    "preface that ends otherwise": Refusal(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    "TLS": Refusal(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    # limits
    "many fields": Refusal(get(*[b"X: a"] * 100), 431),
    "large field": Refusal(get(b"X: " + b"a" * 33_000), 431),
    "large head without an end": Refusal(get()[:-2] + b"X: a\r\n" * 6000, 431),
    # expectations and other protocols
    "other expectation": Refusal(post(b"Expect: coffee", LENGTH), 417),
    "two expectations": Refusal(post(b"Expect: 100-continue, coffee", LENGTH), 417),
    "empty expectation": Refusal(post(b"Expect:", LENGTH), 417),
    "websocket": Refusal(
        get(b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==")
    ),
    "websocket without a key": Refusal(get(b"Connection: upgrade", b"Upgrade: websocket")),
    "websocket among others": Refusal(get(b"Connection: upgrade", b"Upgrade: h2c, WebSocket")),
    # pipelines
    "garbage after a request": Refusal(get() + b"\x00\xff garbage\r\n\r\n", served=1),
    "a body where none was said": Refusal(get() + JOB + b"\r\n\r\n", served=1),
    "a longer body than said": Refusal(post(LENGTH, body=JOB + b"X") + get(), served=1),
    "bare LF after two requests": Refusal(get() + post(LENGTH) + b"GET / HTTP/1.1\nHost: localhost\n\n", served=2),
    "a line after a body": Refusal(post(LENGTH) + b"\r\n" + get(), served=1),
    "chunk extension after a request": Refusal(get() + chunked(b"22;a=b\r\n" + JOB + b"\r\n0\r\n\r\n"), served=1),
    "preface after a request": Refusal(get() + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", served=1),
}

LEGAL: dict[str, tuple[bytes, int]] = {
    "length": (post(LENGTH), 202),
    "length with zeros": (post(b"Content-Length: 0000034"), 202),
    "length with blanks before it": (post(b"Content-Length:   34"), 202),
    "length in other letters": (post(b"cOnTeNt-LeNgTh: 34"), 202),
    "length without a blank": (post(b"Content-Length:34"), 202),
    "no length": (post(b"X: a", body=b""), 422),
    "length of nothing": (post(b"Content-Length: 0", body=b""), 422),
    "chunks": (chunked(CHUNKS), 202),
    "chunks in other letters": (post(b"tRANSFER-eNCODING: ChUnKeD", body=CHUNKS), 202),
    "chunk size in capitals": (chunked(b"0A\r\n          \r\n" + CHUNKS), 202),
    "chunk size with zeros": (chunked(b"0000001\r\n \r\n" + CHUNKS), 202),
    "no chunks": (chunked(b"0\r\n\r\n"), 422),
    "last chunk of many zeros": (chunked(ONE_CHUNK + b"0000\r\n\r\n"), 202),
    "body that looks like a request": (post(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED), 422),
    "body where none is needed": (get(b"Content-Length: 3", line=b"GET /next?queue=q HTTP/1.1") + b"abc", 204),
    "absolute form": (get(line=b"DELETE http://localhost/complete?queue=q&job_id=j HTTP/1.1"), 200),
    "absolute form in capitals": (get(line=b"DELETE HTTP://LOCALHOST:80/complete?queue=q&job_id=j HTTP/1.1"), 200),
    "host with a port": (get(host=b"Host: localhost:8080\r\n"), 200),
    "host in brackets": (get(host=b"Host: [::1]:8080\r\n"), 200),
    "host that is empty": (get(host=b"Host:\r\n"), 200),
    "percent that is none": (get(line=b"GET /next?queue=%zz HTTP/1.1"), 422),
    "percent at the end": (get(line=b"GET /next?queue=q% HTTP/1.1"), 422),
    "percent of no UTF-8": (get(line=b"GET /next?queue=%ff%fe HTTP/1.1"), 422),
    "percent of an overlong NUL": (get(line=b"GET /next?queue=%c0%80 HTTP/1.1"), 422),
    "percent in the path": (get(line=b"DELETE /%63omplete?queue=q&job_id=j HTTP/1.1"), 200),
    "dots": (get(line=b"DELETE /v1/../complete?queue=q&job_id=j HTTP/1.1"), 404),
    "backslash": (get(line=b"DELETE \\complete HTTP/1.1".replace(b"\\", b"/\\")), 404),
    "slash in percents": (get(line=b"DELETE /v1%2Fcomplete?queue=q&job_id=j HTTP/1.1"), 200),
    "expectation": (post(b"Expect: 100-continue", LENGTH), 202),
    "expectation in capitals": (post(b"Expect: 100-Continue", LENGTH), 202),
    "h2c": (get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), 200),
    "h2c with nonsense": (get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: !"), 200),
    "h2c with a body": (post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", LENGTH), 202),
    "upgrade to TLS": (get(b"Connection: upgrade", b"Upgrade: TLS/1.0"), 200),
    "connection that names a field of its framing": (post(b"Connection: content-length", LENGTH), 202),
    "connection that names host": (get(b"Connection: host"), 200),
    "connection of nonsense": (get(b"Connection: ,,;,a b"), 200),
    "high bytes in a value": (get(b"X: \xff\xc3\xa9"), 200),
    "empty value": (get(b"X:"), 200),
    "trailer announced": (chunked(CHUNKS, b"Trailer: x", b"TE: trailers"), 202),
    "another method": (get(b"X-HTTP-Method-Override: GET"), 200),
    "large field within the limit": (get(b"X: " + b"a" * 30_000), 200),
    "as many fields as may be": (get(*[b"X: a"] * 99), 200),
}
