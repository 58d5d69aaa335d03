"""Where the time of a few steps goes, as traces that Chrome shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tuner import paths
from tuner.config.config import Config


class Profiler(TrainerCallback):
    """Records steps as the profiler_ knobs say, into profiler/rank_N under the output."""

    def __init__(self, config: Config, output: Path):
        folder = (
            paths.home() / config.profiler_output_dir if config.profiler_output_dir else output / "profiler"
        )
        self.config, self.folder = config, folder
        self.profile: torch.profiler.profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        said = self.config
        self.profile = torch.profiler.profile(
            schedule=torch.profiler.schedule(
                wait=said.profiler_wait_steps,
                warmup=said.profiler_warmup_steps,
                active=said.profiler_active_steps,
                repeat=said.profiler_repeat,
            ),
            on_trace_ready=torch.profiler.tensorboard_trace_handler(
                str(self.folder / f"rank_{args.process_index}")
            ),
            record_shapes=said.profiler_record_shapes,
            profile_memory=said.profiler_profile_memory,
            with_stack=said.profiler_with_stack,
        )
        self.profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.profile is not None:
            self.profile.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.profile is not None:
            self.profile.stop()
