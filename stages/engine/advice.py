"""What to do about an error of the machine or of a store. It is known by its text: a worker's error comes as text."""

from __future__ import annotations

import errno
import os


def advice(error: str) -> str:
    """Return what to do, for the end of a message; empty where nothing better is known than to try again."""
    if any(os.strerror(code) in error for code in (errno.ENOSPC, errno.EDQUOT)):
        return (
            "free space there and run again, finished work is kept; or give another place (--workspace, --out, or "
            "TMPDIR for temporary files)"
        )
    if "NoCredentialsError" in error:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and run again; finished work is kept"
    if "Invalid endpoint" in error:
        name = "AWS_ENDPOINT_URL_S3" if "AWS_ENDPOINT_URL_S3" in os.environ else "AWS_ENDPOINT_URL"
        return f"set {name} to a URL, such as http://localhost:9000, and run again"
    return ""
