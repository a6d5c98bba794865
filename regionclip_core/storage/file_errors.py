"""Which errors of opening a file are about this one file, and which about the store that it lies in.

The first kind costs a data set one sample. The second (no connection, wrong credentials, a full disk, too many open
files) would cost it every sample, so that it has to stop the shard, which is then tried again.
"""

from __future__ import annotations

import errno

from regionclip_core.storage.locations import is_remote, remote

_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENXIO, errno.ENODEV),
    }
)
_OF_THE_FILE_TYPES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# What S3's error codes say about a key: it is not there, it may not be read, it lies in an archive, no such name.
_OF_THE_KEY = frozenset({"404", "NoSuchKey", "AccessDenied", "InvalidObjectState", "KeyTooLongError"})
_WITHOUT_WORDS = frozenset({"400", "403"})


def is_of_the_file(error: OSError, url: str) -> bool:
    """Whether an error of opening `url` says something about this file alone.

    Of S3's errors, the code tells it: 403 is also the answer to wrong credentials. Where the first answer held no
    code, a request for one byte is made to hear it.
    """
    if error.errno not in _OF_THE_FILE and not isinstance(error, _OF_THE_FILE_TYPES):
        return False
    if not is_remote(url):
        return True
    code = _code(error)
    if code in _WITHOUT_WORDS:
        return _code(_asked_again(url)) in _OF_THE_KEY
    if code is not None:
        return code in _OF_THE_KEY
    return error.errno != errno.EINVAL  # a store's word for a request that it does not understand


def _asked_again(url: str) -> OSError | None:
    try:
        with remote(url) as (filesystem, path):
            filesystem.cat_file(path, start=0, end=1)
    except OSError as error:
        return error
    return None


def _code(error: OSError | None) -> str | None:
    """The S3 error code behind an exception; None where there is none."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else None
