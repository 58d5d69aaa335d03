"""The studio's own settings: settings.yaml in its folder, beside data/ and mlruns/. Without the file all is as it comes.

    executor: ray                          # where runs go: local (as it comes) or ray
    ray_address: http://10.0.0.1:8265      # the cluster's dashboard
    ray_python: /shared/venv/bin/python    # on the nodes; as it comes, the one that the studio itself runs with
    ray_cpus: 4                            # cores that each process of a run is given
    offline: true                          # nothing is asked of a hub, as HF_HUB_OFFLINE=1 has it
    webhook: https://chat.example/hook     # told by a POST when a run ends; or $NAME, a variable that holds the address

A file and no variables: the dashboard, a shell and the supervisor that either of them starts must not differ in it. The
cluster's token is no setting: it comes from the environment, by Ray's own names, see jobs/executors/cluster.py.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tuner import paths, redact
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import mark, tr

FILE = "settings.yaml"
NO_HOOK = mark("a webhook is an https address, or an http one on 127.0.0.1 or localhost, without a password")
_HOOK = re.compile(r"https://[^\s/@]+(/\S*)?|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/\S*)?")
_HUB, _OURS = "HF_HUB_OFFLINE", "TUNER_WENT_OFFLINE"
_OBEYING = ("huggingface_hub.constants", "datasets.config")
_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")


class Settings(BaseModel):
    """What settings.yaml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: Literal["local", "ray"] = "local"
    ray_address: str = Field("http://127.0.0.1:8265", pattern=r"^https?://[^\s/@]+/?$")
    ray_python: str = Field(sys.executable, min_length=1)
    ray_cpus: int = Field(1, ge=1)
    webhook: str = ""
    offline: bool = False

    @field_validator("webhook")
    @classmethod
    def _may_be_told(cls, address: str) -> str:
        if address and not _VARIABLE.fullmatch(address) and not _HOOK.fullmatch(address):
            raise ValueError(NO_HOOK)
        return address

    @property
    def webhook_address(self) -> str:
        """Where to tell of runs that end; empty where nowhere. Raises ValueError for a variable that holds none."""
        if not self.webhook.startswith("$"):
            return self.webhook
        address = os.environ.get(self.webhook[1:], "")
        if address and not _HOOK.fullmatch(address):
            raise ValueError(f"{self.webhook}: {NO_HOOK}")
        return address

    @property
    def elsewhere(self) -> bool:
        """Whether runs live on other machines than this one."""
        return self.executor != "local"


def go_offline() -> None:
    """Let this process and those it starts ask nothing of a hub, or ask again, as the file says. What the environment
    says by itself holds. Libraries look at it once: those that are imported already are told."""
    try:
        wanted = settings().offline
    except ConfigError:
        return
    before = os.environ.get(_HUB) == "1"
    if wanted and not os.environ.get(_HUB):
        os.environ[_HUB] = os.environ[_OURS] = "1"
    elif not wanted and os.environ.pop(_OURS, ""):
        del os.environ[_HUB]
    _tell(os.environ.get(_HUB) == "1", before)


def _tell(offline: bool, before: bool) -> None:
    """Let the libraries that are imported obey a switch that was changed."""
    for name in _OBEYING if offline != before else ():
        if name in sys.modules and hasattr(sys.modules[name], _HUB):
            setattr(sys.modules[name], _HUB, offline)


def path() -> Path:
    return paths.home() / FILE


def settings() -> Settings:
    """The settings as the file has them now. Raises ConfigError with one sentence where it cannot be read."""
    try:
        raw = yaml.safe_load(path().read_text(encoding="utf-8")) or {}
        if not isinstance(raw, dict):
            raise ValueError(tr("it holds no names with values"))
        return Settings(**{str(name): value for name, value in raw.items()})
    except (FileNotFoundError, NotADirectoryError):  # what is wrong with a home is said by whoever makes it
        return Settings()
    except ValidationError as error:
        raise _wrong(_first(error)) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _wrong(str(error).partition("\n")[0]) from None


def _first(error: ValidationError) -> str:
    wrong: Any = error.errors()[0]
    name = ".".join(map(str, wrong["loc"]))
    if wrong["type"] == "extra_forbidden":
        return tr(
            "{name} is none of {model_fields}", name=name, model_fields=", ".join(Settings.model_fields)
        )
    if name == "webhook":
        return tr(NO_HOOK)
    if name == "ray_address":
        return tr("ray_address is no address like http://10.0.0.1:8265, without a path or a password")
    return f"{name}: {wrong['msg'].lower()}"


def _wrong(why: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "settings",
                redact.redact(tr("{path} cannot be used: {why}; fix the file.", path=path(), why=why)),
            )
        ]
    )
