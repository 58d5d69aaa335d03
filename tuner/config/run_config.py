"""What every kind of run has in common: a validated, frozen set of knob values, told from its kind's class."""

from __future__ import annotations

from typing import Any, ClassVar

from tuner.config.kinds import KINDS, Kind, default_of
from tuner.config.knobs import Section, knobs_of


class RunConfig(Section):
    """A run's config. A kind that does not train has a class of its own, made of the sections it needs."""

    of_kind: ClassVar[str] = ""
    """The kind's name, written down as `stage`; empty for training, where that is a knob."""

    @property
    def kind(self) -> Kind:
        """What a run with this config is."""
        return KINDS[self.of_kind]

    @property
    def called(self) -> str:
        """The name that its run was given; empty for one that the studio makes up."""
        return str(getattr(self, "run_name", None) or "")

    def changed(self) -> dict[str, Any]:
        """The knobs that differ from their defaults for this stage, plain enough for YAML and JSON."""
        knobs, plain = knobs_of(type(self)), self.plain()
        return {
            name: value
            for name, value in plain.items()
            if name not in knobs
            or value != as_plain(default_of(plain.get("stage"), name, knobs[name].default))
        }

    def plain(self) -> dict[str, Any]:
        """Every knob, and the kind where no knob says it, plain enough for YAML and JSON. Secrets are left out."""
        own = {"stage": self.of_kind} if self.of_kind else {}
        knobs = knobs_of(type(self))
        return own | {name: as_plain(getattr(self, name)) for name, k in knobs.items() if not k.secret}

    def secrets(self) -> dict[str, str]:
        """The secret knobs that were given; they go to the worker by a private file, never into a record."""
        knobs = knobs_of(type(self))
        return {
            name: str(getattr(self, name)) for name, k in knobs.items() if k.secret and getattr(self, name)
        }


def as_plain(value: Any) -> Any:
    """A knob's value as JSON and YAML have it: a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value
