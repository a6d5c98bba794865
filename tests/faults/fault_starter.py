"""Starts runs of the command line fast: a process that has imported everything, and forks one child per run.

A program by itself. It reads requests from its standard input, one line of JSON each, and answers each with one line:

    {"start": [argument, ...], "log": file, "environment": {}, "budget": bytes or null}  ->  {"pid": n}
    {"poll": pid}  ->  {"status": null while it runs, else its exit status, -9 for one that was killed}
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MODULES = (
    *("torch", "torchvision", "open_clip", "webdataset", "s3fs", "pyarrow.parquet", "PIL.Image", "stages.cli"),
    *("stages.engine.runner", "stages.commands.show"),
    *(f"stages.{name}" for name in ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs")),
    *(f"stages.{name}" for name in ("pretrain", "finetune")),
)
"""What the runs import: each stage's file imports the rest at its top."""


def limit_writes(budget: int) -> None:
    """Let files that are opened by descriptor, as artifacts are, run out of space after so many bytes."""
    left = [budget]

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) > left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= len(data)
            return super().write(data) or 0

    opened: Callable[..., Any] = os.fdopen
    os.fdopen = lambda fd, mode="r", *a, **k: (  # type: ignore[assignment]
        io.BufferedWriter(Full(fd, "wb")) if mode == "wb" else opened(fd, mode, *a, **k)
    )


def child(request: dict[str, Any]) -> None:
    """What a forked child does instead of returning."""
    status = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request.get("environment") or {})
        if "AWS_MAX_ATTEMPTS" in os.environ:
            import s3fs

            s3fs.S3FileSystem.retries = 2  # a broken connection is an error soon
        if request.get("budget") is not None:
            limit_writes(request["budget"])
        from stages.cli import app

        sys.argv = ["regionclip", *request["start"]]
        app(request["start"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def poll(pid: int) -> int | None:
    """Exit status of a child, None while it runs; negative for the signal that ended it."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    """Answer requests until the input ends."""
    import importlib

    for module in MODULES:
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer: dict[str, Any] = {"status": poll(request["poll"])}
        else:
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
