"""A tuning: settings that were tried for one command, and the best of them."""

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcclctl.artifacts.handle import Handle

if TYPE_CHECKING:
    import polars as pl


class Tuning(Handle):
    """Trials of one command's settings, each an ordinary artifact scored on valid."""

    @property
    def command(self) -> str:
        """The command whose settings were tried, e.g. 'train'."""
        return str(self.config["command"])

    @property
    def metric(self) -> str:
        """What was compared, e.g. 'all.ndcg@10', with '/1000' where only sampled items were ranked."""
        return f"{self.facts['group']}.{self.facts['metric']}"

    @cached_property
    def trials(self) -> "pl.DataFrame":
        """A TRIALS table, see tables.py."""
        return self.artifact.read_table("trials.parquet")

    @property
    def best(self) -> str:
        """The model or method of the best trial of all."""
        return str(self.facts["best_variant"])

    def settings(self, variant: str = "") -> dict[str, Any]:
        """The recorded configuration of a variant's best trial; '': of the best of all."""
        return dict(self.facts["best"][variant or self.best]["config"])

    def toml(self) -> str:
        """The best settings as a file for `--config`: every variant's own, and the best variant as the command's choice."""
        best, choice, defaults = self.facts["best"], self.config["choice"], self.config["defaults"]
        shown = {name: each["value"] for name, each in best.items()}
        lines = [
            f"# {self.ref}: the best of {self.config['trials']} trials each by {self.metric} on valid: "
            + ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        ]
        config = self.settings()
        own = {key: value for key, value in config.items() if not isinstance(value, dict)}
        lines += ["", f"[{self.command}]", f"seed = {self.artifact.seed}"]
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in own.items()
            if key == choice or self._asked_for(key, value)
        ]
        for name in best:
            values = self.settings(name)[name]
            changed = {key: value for key, value in values.items() if value != defaults[name].get(key)}
            if changed:
                lines += ["", f"[{self.command}.{name}]"]
                lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items()]
        return "\n".join(lines) + "\n"

    def _asked_for(self, key: str, value: Any) -> bool:
        """Is this setting of the command one that the file must have?"""
        default = self.config["defaults"][""].get(key)
        if key in ("device", "threads"):  # recorded as they were found; one that was not asked for stays free
            return bool(self.config[key] != default)
        # the users of a file are known by its hash only
        return bool(value != default and not str(value).startswith("@sha256:"))
