"""`patch`: cloud model × each user's own log → patches, by a device method (see devices/method.py)."""

from typing import Any

from dcclctl.artifacts import CloudModel, Dataset, Memory, PatchSet
from dcclctl.compute import compute_settings, torch_device
from dcclctl.config import PatchConfig
from dcclctl.devices.method import DeviceMethod, Learned, PatchTask, method_of
from dcclctl.errors import ArtifactError, DataError, UsageError
from dcclctl.events.log import Block
from dcclctl.events.sampling import Ints
from dcclctl.stages.chosen import chosen_users
from dcclctl.stages.memory import remember
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.store import Input, NotMade, Step


def patch(
    cloud: CloudModel,
    settings: Settings = NO_SETTINGS,
    run: RunOptions = DEFAULT_RUN,
    memory: Memory | None = None,
    learn_with: CloudModel | None = None,
) -> PatchSet:
    """Learn a patch for every chosen user.

    Args:
        cloud: the frozen model. settings: see PatchConfig and the method's own section. run: how to run.
        memory: of the devices, for a method that uses it; None: the dataset's newest, made if there is none.
        learn_with: a cloud model that was not trained on the period, for a method that uses a memory; None: `cloud`, or
            what it was continued from.

    Raises:
        UsageError: a setting that the method does not read, an unknown user, a cloud model that the method cannot patch.
        ArtifactError: memory or learn_with is of another dataset.
        DataError: none of the chosen users has events in the block.
    """
    config = resolve(PatchConfig, settings, run.config)
    method, dataset = method_of(config.method), cloud.dataset
    if memory is not None and not method.uses_memory:
        raise UsageError(
            f"--memory {memory.ref}: --method {config.method} uses no memory", "Use it with --method memory."
        )
    if learn_with is not None and not method.uses_memory:
        raise UsageError(
            f"--learn-with {learn_with.ref}: --method {config.method} learns with --cloud",
            "Use it with --method memory.",
        )
    for given, flag in ((memory, "--memory"), (learn_with, "--learn-with")):
        if given is not None and given.dataset.id != dataset.id:
            raise ArtifactError(
                f"{given.ref} is of {given.dataset.ref}, but {cloud.ref} of {dataset.ref}",
                f"Use one of the same dataset, or leave {flag} out.",
            )
    asked = config.users
    users, spec = chosen_users(dataset, asked)
    config = config.model_copy(
        update={
            "users": spec,
            "negatives": config.negatives or cloud.negatives,
            "settings": method.adapt(config.settings, cloud),
        }
    )
    block = Block.parse(config.on)
    _check_events(method, dataset, users, block, asked)
    own: Any = config.settings
    amount = events_of(dataset, [block]) * (getattr(own, "epochs", 0) or getattr(own, "steps", 1))
    with compute_settings(config, run.remark) as config:
        if memory is None and method.uses_memory:
            try:
                memory = newest_memory(dataset) or remember(dataset, run=RunOptions(run.on_progress, config=run.config))
            except NotMade:
                cloud.store.plan_also(Step("patch", "patches", config.recorded(), amount))
                raise
        inputs = {"cloud": cloud.artifact.as_input(), "dataset": dataset.artifact.as_input()}
        if spec.startswith("@sha256:"):
            inputs["users"] = Input("raw", spec.removeprefix("@sha256:"))
        if memory is not None:
            inputs["memory"] = memory.artifact.as_input()
        if learn_with is not None:
            inputs["learn_with"] = learn_with.artifact.as_input()
        with cloud.store.begin("patch", "patches", config.recorded(), config.seed, inputs, run.force, amount) as work:
            if work.reused is not None:
                return named(PatchSet(work.reused), run)
            task: PatchTask[Any] = PatchTask(
                cloud,
                block,
                users,
                config,
                config.settings,
                torch_device(config),
                work,
                run.on_progress,
                memory,
                learn_with,
                executor=run.executor,
            )
            learned = method.learn(task)
            work.write_table("users.parquet", learned.users)
            facts = {
                "id_map": dataset.id_map,
                "on": config.on,
                "own_basis": method.own_basis,
                "patch_size": learned.patch_size,
                **learned.facts,
                **_summary(learned, len(users)),
            }
            return named(PatchSet(work.commit(facts)), run)


def newest_memory(dataset: Dataset) -> Memory | None:
    """The newest memory of a dataset; None if there is none."""
    store = dataset.store
    found = (store.load("memory", number) for number in reversed(store.numbers("memory")))
    return next((Memory(each) for each in found if each.inputs["dataset"].id == dataset.id), None)


def _check_events(method: DeviceMethod[Any], dataset: Dataset, users: Ints, block: Block, asked: str) -> None:
    """Refuse users and a period without an event to learn from."""
    counts = dataset.count_events(block)
    enough = counts[users].any() if method.learns_locally else len(users) and counts.any()
    if not enough:
        raise DataError(
            f"--users {asked}: none of the {len(users)} users has an event in {block} to learn from",
            "Choose other --users or another --on. Users without a patch are served by the cloud model, or after distill "
            "by the encoder (evaluate --unpatched encoder).",
        )


def _summary(learned: Learned, asked: int) -> dict[str, object]:
    """Facts about the patched users; `asked` is how many users a patch was wanted for."""
    table = learned.users
    tested = table.drop_nulls("loss_after")
    improved = int((tested["loss_after"] < tested["loss_before"]).sum())
    return {
        "users": table.height,
        "users_asked_for": asked,
        "users_without_events": asked - int((table["events"] > 0).sum()),
        "events": int(table["events"].sum()),
        "bytes_per_user": learned.bytes_per_user,
        "users_tested": tested.height,
        "users_improved": improved,
        "improved_share": improved / tested.height if tested.height else None,
        "kept": int(table["kept"].sum()),
    }
