"""What an error of the AWS driver means for a call: five kinds, told apart by whether it can have had an effect.

A kind is decided by the code that the service answered, or by how far the driver came; what neither says is a doubt. No message repeats the
driver's words: they may hold names of keys and of accounts.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum
from typing import Any

import aiohttp
import msgspec
from botocore import exceptions as driver
from botocore.parsers import ResponseParserError

CAUGHT = (driver.BotoCoreError, driver.ClientError, ResponseParserError, aiohttp.ClientError, asyncio.TimeoutError, OSError)


class Trouble(Enum):
    """What is known of a call that failed."""

    BUSY = "busy"  # without effect; the same call will succeed after a while
    AWAY = "away"  # without effect: there was nobody to send it to
    DOUBT = "doubt"  # perhaps done
    DENIED = "denied"  # without effect, until someone mends settings, rights or the table
    WRONG = "wrong"  # without effect, whenever it is tried
    UNMET = "unmet"  # without effect: a condition of it does not hold


class Fault(msgspec.Struct, frozen=True):
    """An error, understood."""

    trouble: Trouble
    told: str  # for a reader, without a secret
    reasons: tuple[str, ...] = ()  # of a cancelled transaction, one for each of its actions: a code, or "None"
    code: str = ""  # that the service answered with


_BUSY = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "ProvisionedThroughputExceeded",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottlingError",
        "RequestThrottled",
        "TooManyRequestsException",
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "TransactionConflictException",
        "TransactionConflict",
        "ReplicatedWriteConflictException",
    }
)
_DENIED = {
    "AccessDeniedException": "these credentials may not do this; `proteus-shards doctor` lists the permissions needed",
    "UnrecognizedClientException": "AWS does not know these credentials",
    "InvalidClientTokenId": "AWS does not know these credentials",
    "InvalidSignatureException": "the signature is not accepted: is the secret key right, and the clock?",
    "RequestTimeTooSkewed": "the clock of this machine is wrong by minutes",
    "RequestExpired": "the clock of this machine is wrong by minutes",
    "MissingAuthenticationTokenException": "the request carried no credentials",
    "IncompleteSignatureException": "the credentials are not complete",
    "ExpiredTokenException": "the credentials have expired",
    "ExpiredToken": "the credentials have expired",
    "OptInRequired": "the account is not signed up for DynamoDB",
    "ResourceNotFoundException": "there is no such table in this region and account",
}
_WRONG = frozenset(
    {
        "ValidationException",
        "ValidationError",
        "SerializationException",
        "ItemCollectionSizeLimitExceededException",
        "ItemCollectionSizeLimitExceeded",
        "RequestEntityTooLarge",
    }
)
UNMET = frozenset({"ConditionalCheckFailedException", "ConditionalCheckFailed"})

_NOT_SENT = (
    driver.NoCredentialsError,
    driver.PartialCredentialsError,
    driver.CredentialRetrievalError,
    driver.UnknownCredentialError,
    driver.TokenRetrievalError,
    driver.NoAuthTokenError,
    driver.SSOError,
    driver.MetadataRetrievalError,
    driver.ProfileNotFound,
    driver.ConfigNotFound,
    driver.ConfigParseError,
    driver.InvalidConfigError,
    driver.NoRegionError,
    driver.InvalidRegionError,
)


def fault_of(error: BaseException) -> Fault:
    """Return what an error of the driver means."""
    if isinstance(error, driver.ClientError):
        code = str(error.response.get("Error", {}).get("Code", "")).rpartition("#")[2] or "no code"
        return msgspec.structs.replace(_answered(error.response, code), code=code)
    if isinstance(error, driver.NoRegionError):
        return Fault(Trouble.DENIED, "no region is set: give region=… in the store's URL, or AWS_REGION")
    if isinstance(error, driver.ProfileNotFound):
        return Fault(Trouble.DENIED, "there is no such profile in the AWS configuration")
    if isinstance(error, driver.NoCredentialsError | driver.PartialCredentialsError):
        return Fault(Trouble.DENIED, "no AWS credentials were found (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a role)")
    if isinstance(error, _NOT_SENT):
        return Fault(Trouble.DENIED, f"the AWS credentials or configuration could not be read ({type(error).__name__})")
    if isinstance(error, driver.ConnectTimeoutError):
        return Fault(Trouble.BUSY, "DynamoDB did not take a connection in time")
    if _never_connected(error):
        return Fault(Trouble.AWAY, f"DynamoDB cannot be reached ({type(error).__name__})")
    if isinstance(error, asyncio.TimeoutError | driver.ReadTimeoutError):
        return Fault(Trouble.DOUBT, "DynamoDB did not answer in time")
    return Fault(Trouble.DOUBT, f"the connection to DynamoDB was lost ({type(error).__name__})")


def _never_connected(error: BaseException) -> bool:
    """Say whether it surely failed before anything was sent.

    The driver calls it a failure to connect, too, when a connection that was there is reset: what counts is what its HTTP client raised.
    """
    cause = error.kwargs.get("error") if isinstance(error, driver.ConnectionError) else error
    return isinstance(cause, aiohttp.ClientConnectorError | socket.gaierror)


def _answered(answer: dict[str, Any], code: str) -> Fault:
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "TransactionCanceledException":
        reasons = tuple(str(reason.get("Code", "None")) for reason in answer.get("CancellationReasons", ()))
        return Fault(_cancelled(reasons), _told_of(reasons), reasons)
    if code in UNMET:
        return Fault(Trouble.UNMET, "a condition did not hold", ("ConditionalCheckFailed",))
    if code in _BUSY:
        return Fault(Trouble.BUSY, f"DynamoDB asks to go slower ({code})")
    if code in _DENIED:
        return Fault(Trouble.DENIED, f"DynamoDB refuses: {_DENIED[code]} ({code})")
    if code in _WRONG or status == 413:
        return Fault(Trouble.WRONG, f"DynamoDB does not take it ({code})")
    if code == "TransactionInProgressException" or not 400 <= status < 500:
        return Fault(Trouble.DOUBT, f"DynamoDB failed ({code}, status {status})")
    return Fault(Trouble.DENIED, f"DynamoDB refuses ({code}, status {status})")


def _cancelled(reasons: tuple[str, ...]) -> Trouble:
    """Return what the reasons of a cancelled transaction come to: a condition that does not hold says more than a conflict beside it."""
    codes = set(reasons) - {"None"}
    if codes & UNMET:
        return Trouble.UNMET
    if codes & _WRONG:
        return Trouble.WRONG
    return Trouble.BUSY if codes <= _BUSY and codes else Trouble.DENIED


def _told_of(reasons: tuple[str, ...]) -> str:
    codes = sorted(set(reasons) - {"None"})
    return f"DynamoDB cancelled the transaction ({', '.join(codes) or 'no reason given'})"
