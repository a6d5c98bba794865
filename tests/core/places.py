"""Where files that tests read are, whichever folder a test is in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TINY_COCO = Path(os.environ.get("REGIONCLIP_TINY_COCO", ROOT.parent / "shared" / "tiny_coco"))
"""100 real COCO images with captions and boxes; tests that read it skip where it is absent."""
