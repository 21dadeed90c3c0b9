"""Puts any error into one line for a person: what was wrong, the value, and what helps.

Errors of this package say so themselves. Those of the operating system, of AWS's library and of others are put into
words here, by the name of their class, so that none of these libraries is loaded for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from symphony_dask.errors import SymphonyError

#: Set to anything, it has commands show where an error came from.
DEBUG = "SYMPHONY_DEBUG"

_MOST = 500

#: AWS's error codes that say something about who asks, not about what was asked.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_UNKNOWN_CALLER = {
    "AuthFailure", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}  # fmt: skip
_REFUSED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedAccess"}

_SIGN_IN = "sign in again (aws sso login, or aws configure), or give the machine a role"
_CREDENTIALS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"


def debugging() -> bool:
    return bool(os.environ.get(DEBUG))


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust (polars) found a fault of its own, or a file that it did not expect."""
    return type(error).__module__ == "pyo3_runtime"


def in_one_line(error: BaseException) -> str:
    """What to tell of ``error``; one of this package is told as it is."""
    if isinstance(error, SymphonyError):
        return str(error)
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3"):
        return aws_error(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename!r:.200}: " if error.filename is not None else ""
        return f"{where}{error.strerror.lower()}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed here: install it with pip, or the extra of symphony-dask that needs it"
    if type(error).__module__.partition(".")[0] in ("polars", "pyarrow", "pyo3_runtime"):
        return (
            f"a table cannot be read ({_short(error)}): it is damaged, or no table (symphony trace validate RUN tells)"
        )
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({_short(error)}): give a shorter trace or fewer GPUs, or a larger machine"
    return f"{type(error).__name__}: {_short(error)} (not foreseen; {DEBUG}=1 shows where)"


def aws_error(error: BaseException) -> str:
    """What an error of botocore means, and what helps."""
    name, text = type(error).__name__, _short(error)
    if name == "ClientError":
        return _refusal(getattr(error, "response", {}), str(getattr(error, "operation_name", "")))
    for names, remedy in _BY_CLASS:
        if name in names:
            return f"AWS: {text.rstrip('.')}: {remedy}"
    return f"AWS cannot be asked ({name}: {text}): check the region (--region) and AWS_ENDPOINT_URL"


def _refusal(response: Any, operation: str) -> str:
    found = response.get("Error", {})
    code, text = str(found.get("Code", "")), _line(str(found.get("Message", "")))
    said = f"AWS refused {operation} ({code}: {text.rstrip('.')})"
    if code in _EXPIRED:
        return f"{said}: the credentials have expired: {_SIGN_IN}"
    if code in _UNKNOWN_CALLER:
        return f"{said}: the credentials are wrong, or of another account: {_SIGN_IN}"
    if code in _REFUSED:
        return f"{said}: give the role that permission, or use another role (AWS_PROFILE)"
    if "does not exist" in text or code.endswith((".NotFound", "NotFound", "NotFoundException")):
        return f"{said}: check its name, and the region (--region)"
    return f"{said}: check what was asked, and the region (--region)"


_BY_CLASS: tuple[tuple[set[str], str], ...] = (
    (
        {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"},
        _CREDENTIALS,
    ),
    ({"UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "LoginRefreshRequired"}, _SIGN_IN),
    ({"ProfileNotFound", "ConfigNotFound", "ConfigParseError"}, "check AWS_PROFILE and ~/.aws/config"),
    ({"NoRegionError"}, "give --region, or set AWS_DEFAULT_REGION"),
    (
        {
            "ConnectTimeoutError", "ConnectionClosedError", "ConnectionError", "EndpointConnectionError",
            "HTTPClientError", "ProxyConnectionError", "ReadTimeoutError", "SSLError",
        },
        "check the network, the region (--region) and AWS_ENDPOINT_URL",
    ),
    ({"InvalidRegionError", "UnknownServiceError", "UnknownEndpointError"}, "check the region (--region)"),
    ({"ParamValidationError"}, "check the option that has this value"),
    ({"WaiterError"}, "look at it in AWS's console, and try again"),
)  # fmt: skip


def _short(error: BaseException) -> str:
    """What the error says, in one line, whatever its own code does."""
    return _line(_said(lambda: str(error)) or _said(lambda: repr(error)) or type(error).__name__)


def _said(say: Callable[[], str]) -> str:
    try:
        return say()
    except Exception:
        return ""


def _line(text: str) -> str:
    text = " ".join(text[: 4 * _MOST].split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
