"""Object stores through pyarrow's file systems: listed and read by URL, and their errors in words.

Keys and endpoints come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_REGION,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT, ...), so that no name of a place ever holds one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from imret.errors import DataError, summary
from imret.places.names import split_last, without_secrets

_ENVIRONMENT = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_NO_SIGN_REQUEST"),
    *("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_KEY", "GOOGLE_CLOUD_PROJECT"),
    "AZURE_STORAGE_ACCOUNT_KEY",
)
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the file of a key",
    "az": "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY",
}
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN"
    r"|EXPIRED_TOKEN|ExpiredToken|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken"
    r"|HTTP status 40[13]|HTTP response code 40[13]|\b40[13] (?:Forbidden|Unauthorized)|AuthenticationFailed"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|MISSING_AUTHENTICATION",
    re.IGNORECASE,
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_ELSEWHERE = re.compile(r"PERMANENT_REDIRECT|AuthorizationHeaderMalformed|HTTP (?:response code|status) 301")
_SILENT = re.compile(
    r"NETWORK_CONNECTION|curlCode: [67]\b|Could not connect|Could not resolve", re.IGNORECASE
)


class NotThere(DataError):
    """What a name stands for is not there, though its store answers."""


class Refused(DataError):
    """The store lets nobody with these keys in, or knows no such bucket: to ask again is idle."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies in an object store or a folder.

    Attributes:
        name: The last part of its path.
        is_folder: Whether more lies below it; the numbers are 0 then.
        size_bytes: Of its content.
        mtime_ns: When it was last changed, in nanoseconds since 1970.
    """

    name: str
    is_folder: bool
    size_bytes: int = 0
    mtime_ns: int = 0


def list_folder(url: str) -> list[Stored]:
    """Return what lies directly below a URL, in any order; nothing where there is no such prefix.

    Raises:
        DataError: If it cannot be listed.
    """
    fs = _fs()

    system, key = _opened(url)
    try:
        # Not with allow_not_found: a bucket that is not there would be an empty one.
        found = system.get_file_info(fs.FileSelector(key))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explained(url, error) from error
    return [_stored(info) for info in found if info.type != fs.FileType.NotFound]


def look_up(urls: Sequence[str]) -> list[Stored | None]:
    """Return what each of some URLs of one store is; None where nothing is.

    Raises:
        DataError: If that cannot be found out.
    """
    fs = _fs()

    if not urls:
        return []
    system, _ = _opened(urls[0])
    try:
        found = system.get_file_info([url.partition("://")[2] for url in urls])
    except OSError as error:
        raise explained(urls[0], error) from error
    return [None if info.type == fs.FileType.NotFound else _stored(info) for info in found]


def open_object(url: str) -> Any:
    """Open an object to read from anywhere in it: a pyarrow.NativeFile.

    Raises:
        NotThere: If there is none.
        DataError: If it cannot be opened.
    """
    system, key = _opened(url)
    try:
        return system.open_input_file(key)
    except OSError as error:
        raise explained(url, error) from error


def explained(url: str, error: OSError) -> DataError:
    """Return an error of an object store in words, with what to do."""
    text, shown = str(error), without_secrets(url)
    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    if isinstance(error, FileNotFoundError):
        above = split_last(url)[0]
        return NotThere(f"nothing is at {shown!r}. See what is there by listing {above!r}.")
    at = f" at {without_secrets(endpoint)}" if (endpoint := _endpoint(scheme)) else ""
    if _NO_BUCKET.search(text):
        return Refused(
            f"there is no bucket {bucket!r}{at}, which {shown!r} names. Check its name"
            f"{', and AWS_ENDPOINT_URL' if scheme == 's3' else ''}."
        )
    if _REFUSED.search(text):
        return Refused(
            f"the store{at} lets nobody with these keys read {shown!r} ({_short(text)}). imret takes them "
            f"from {_KEYS[scheme]}."
        )
    if _ELSEWHERE.search(text):
        return Refused(
            f"the bucket {bucket!r} is in another region. Say which: AWS_REGION=eu-central-1, say."
        )
    if _SILENT.search(text):
        return DataError(
            f"nothing answers{at or f' for {scheme}://'}, so {shown!r} cannot be read ({_short(text)}). Is "
            f"the network there{', and AWS_ENDPOINT_URL right' if scheme == 's3' else ''}?"
        )
    return DataError(f"{shown!r} cannot be read: {_short(text)}.")


def _short(text: str) -> str:
    """Return the part of a store's message that says what happened."""
    known = re.search(r"AWS Error ([A-Z_]+)|([A-Z]{4,}(?:_[A-Z]+)+)", text)
    return next(filter(None, known.groups()), "") if known else summary(OSError(text))


def _endpoint(scheme: str) -> str:
    if scheme != "s3":
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _fs() -> Any:
    """Return pyarrow.fs, which has no types."""
    try:
        import pyarrow.fs
    except ModuleNotFoundError as error:
        raise DataError("object stores are read with pyarrow: pip install 'imret[remote]'") from error
    return pyarrow.fs


def _stored(info: Any) -> Stored:
    fs = _fs()

    if info.type == fs.FileType.Directory:
        return Stored(info.base_name, True)
    return Stored(info.base_name, False, info.size or 0, info.mtime_ns or 0)


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    scheme, _, key = url.partition("://")
    return _file_system(scheme, key.partition("/")[0], tuple(map(os.environ.get, _ENVIRONMENT))), key


@lru_cache(16)
def _file_system(scheme: str, bucket: str, environment: tuple[str | None, ...]) -> Any:
    fs = _fs()
    try:
        if scheme == "s3":
            return _s3(fs, bucket)
        if scheme == "gs":
            return fs.GcsFileSystem()
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or os.environ.get("AZURE_STORAGE_ACCOUNT")
        if not account:
            raise DataError(f"whose az://{bucket} is meant is not said. Set {_KEYS['az']}.")
        key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY") or os.environ.get("AZURE_STORAGE_KEY")
        return fs.AzureFileSystem(account, account_key=key)
    except AttributeError as error:
        raise DataError(
            f"this pyarrow was built without {scheme}://. Install another: pip install pyarrow"
        ) from error
    except OSError as error:
        raise explained(f"{scheme}://{bucket}", error) from error


def _s3(fs: Any, bucket: str) -> Any:
    endpoint = _endpoint("s3")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and endpoint:
        region = "us-east-1"  # what stores that are not Amazon's go by
    if not region:
        region = fs.resolve_s3_region(bucket)
    is_open = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("yes", "true", "1")
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        region=region,
        anonymous=is_open,
        connect_timeout=10,
        request_timeout=60,
    )
