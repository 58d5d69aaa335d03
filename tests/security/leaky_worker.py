"""The real worker with a stage that says every secret it can get hold of, in every way, and then fails with some more.

`python -m tests.security.leaky_worker RUN_ID`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any, NoReturn
from urllib.parse import quote

from tuner import worker
from tuner.text.message import plain


def leak(live: Any, _mirror: Any) -> NoReturn:
    known = [v for v in os.environ.values() if "CANARY" in v] + list(live.run.secrets().values())
    logging.basicConfig(stream=sys.stderr)
    for secret in known:
        print(f"trying {secret} and {quote(secret, safe='')}, {secret!r}", flush=True)
        logging.getLogger("library").warning("headers: {'Authorization': 'Bearer %s'}", secret)
        warnings.warn(f"http://user:{quote(secret, safe='')}@hub.test answered 401", stacklevel=1)
        os.write(sys.stderr.fileno(), b"a library's own words\n")
        live.note(plain(f"went on with token={secret}"))
    live.run.update(tracker=plain(f"{' '.join(known)} were refused"))
    raise RuntimeError(" ".join(f"401 for https://user:{quote(s, safe='')}@hub.test with {s}" for s in known))


worker._train = leak  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1]))
