"""Pictures in tars and what ingest stores of them, for tests of what opens them."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imret.store.payload import make_payload


def write_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar of regular files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def offsets(data: bytes) -> dict[str, int]:
    """Return where the bytes of each member of a tar begin."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member.offset_data for member in archive}


def stored_payload(
    source: str | os.PathLike[str], path: str, data: bytes, *, unit: str | None = None, at: int | None = None
) -> dict[str, Any]:
    """Make what ingest stores of a picture, in a container where a unit is given."""
    payload = make_payload(
        source=os.fspath(source),
        path=path,
        category=None,
        sha256=hashlib.sha256(data).hexdigest(),
        width=64,
        height=48,
        size_bytes=len(data),
        modified="2020-01-02T03:04:05.000000Z",
    )
    return payload | {name: value for name, value in (("unit", unit), ("at", at)) if value is not None}


def shard_payloads(
    source: str | os.PathLike[str], unit: str, shard: bytes, members: Mapping[str, bytes]
) -> dict[str, dict[str, Any]]:
    """Return the payload of each member of a tar that lies at `unit` below a source."""
    at = offsets(shard)
    return {
        name: stored_payload(source, f"{unit}/{name}", data, unit=unit, at=at[name])
        for name, data in members.items()
    }
