"""Which errors of a store are one file's: S3's answers as s3fs passes them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from regionclip_core.storage import locations
from regionclip_core.storage.locations import is_of_the_file

URL = "s3://bucket/a.jpg"


def answer(code: str) -> OSError:
    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": code}}, "GetObject"))
    assert isinstance(error, OSError)
    return error


@pytest.mark.parametrize("code", ["NoSuchKey", "404", "AccessDenied", "InvalidObjectState", "KeyTooLongError"])
def test_answers_about_a_key(code: str) -> None:
    assert is_of_the_file(answer(code), URL)


@pytest.mark.parametrize(
    "code",
    [
        *("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        *("RequestTimeTooSkewed", "RequestTimeout", "SlowDown", "InternalError", "503", "500", "AnythingNew"),
    ],
)
def test_answers_about_the_store(code: str) -> None:
    assert not is_of_the_file(answer(code), URL)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("AccessDenied", True), ("KeyTooLongError", True), ("ExpiredToken", False), ("403", False), (None, False)],
)
@pytest.mark.parametrize("first", ["403", "400"])
def test_an_answer_without_words_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, first: str, said: str | None, expected: bool
) -> None:
    """HEAD has no body to say more in. What works the second time was not the file's fault."""
    asked: list[str] = []

    class Store:
        def cat_file(self, path: str, **_: int) -> bytes:
            asked.append(path)
            if said is not None:
                raise answer(said)
            return b"x"

    @contextmanager
    def remote(url: str) -> Iterator[tuple[Any, str]]:
        yield Store(), url

    monkeypatch.setattr(locations, "remote", remote)
    assert is_of_the_file(answer(first), URL) is expected
    assert asked == [URL]


def test_stores_without_codes() -> None:
    assert is_of_the_file(FileNotFoundError("a.jpg"), "memory://a.jpg")
    assert is_of_the_file(PermissionError("a.jpg"), "gs://bucket/a.jpg")
    assert not is_of_the_file(ConnectionError("a.jpg"), "gs://bucket/a.jpg")
    assert not is_of_the_file(OSError(22, "bad request"), "gs://bucket/a.jpg")
    assert is_of_the_file(OSError(22, "bad name"), "/a.jpg")
