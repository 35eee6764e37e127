"""Settings that several device methods share. A method's own section stands beside its code."""

from typing import Annotated

from pydantic import Field

from dcclctl.config import Positive, Rate, Section, rarely, tuned


class LocalSettings(Section):
    steps: Positive = tuned(15, "Gradient steps on a device.", search="5..40")
    learning_rate: Rate = tuned(0.03, "Adam's step size on a device.", search="3e-3..0.3")
    prior: Annotated[float, Field(ge=0.0)] = tuned(
        30.0,
        "λ: weight of the squared distance to the prior's mean against the sum of a user's losses.",
        search="1..300",
    )
    shard_users: Positive = rarely(2048, "Users in a shard; a killed run resumes at the first missing shard.")
    batch_rows: Positive = rarely(
        8192, "Padded rows held at once; the default suits a CPU's cache, a GPU is faster with more."
    )
