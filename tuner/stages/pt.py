"""Pre-training on: learn plain text, every token of it."""

from __future__ import annotations

import math

from tuner.config.config import Config
from tuner.engine.live import LiveRun, Outcome
