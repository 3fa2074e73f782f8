"""python -m sample_project.gateway [port]"""

from __future__ import annotations

import sys

from sample_project.gateway.server import Gateway

with Gateway(int(sys.argv[1]) if len(sys.argv) > 1 else 8300) as gateway:
    sys.stdout.write(f"The gateway listens on {gateway.url}\n")
    sys.stdout.flush()
    gateway.closing.wait()
