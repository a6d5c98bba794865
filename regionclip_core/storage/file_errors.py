"""Which errors of opening a file are about this one file, and which about the store that holds it.

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
# S3's error codes about one key: not there, not to be read, in an archive, no such name.
_OF_THE_KEY = frozenset({"404", "NoSuchKey", "AccessDenied", "InvalidObjectState", "KeyTooLongError"})
_WITHOUT_CODE = frozenset({"400", "403"})


def is_of_the_file(error: OSError, url: str) -> bool:
    """Return whether an error of opening `url` is about this file alone.

    S3's error code decides: 403 is also the answer to wrong credentials. Where the first answer had no code, a request
    for one byte gets it.
    """
    if error.errno not in _OF_THE_FILE and not isinstance(error, _OF_THE_FILE_TYPES):
        return False
    if not is_remote(url):
        return True
    code = _code(error)
    if code in _WITHOUT_CODE:
        try:
            with remote(url) as (filesystem, path):
                filesystem.cat_file(path, start=0, end=1)
        except OSError as second:
            return _code(second) in _OF_THE_KEY
        return False
    if code is not None:
        return code in _OF_THE_KEY
    return error.errno != errno.EINVAL  # what a store answers to a request that it does not understand


def _code(error: OSError) -> str | None:
    """Return the S3 error code behind an exception; None where there is none."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else None
