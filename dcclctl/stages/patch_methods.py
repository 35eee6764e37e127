"""The device methods of `patch`, one row each in METHODS: what all users share, and how a user's numbers are found."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.algorithm import devicemethods, metapatch
from dcclctl.algorithm.basis import learn_basis, new_basis
from dcclctl.algorithm.devicemethods import (
    GeneratedSpace,
    Generator,
    Histories,
    ItemSpace,
    LayerSpace,
    LocalRows,
    PatchSpace,
)
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.metapatch import Basis, PatchShape
from dcclctl.algorithm.sampling import Ints, stream
from dcclctl.algorithm.scoring import item_embeddings
from dcclctl.stages.handles import MAP_FILE, read_basis, read_prior_mean, write_basis, write_prior_mean

if TYPE_CHECKING:
    from dcclctl.stages.patch import Devices

#: newest events that say who is similar to whom
SIMILARITY_EVENTS = 50


class Lenders:
    """Everybody who has events in the block, as `similar-users` looks them up.

    Attributes:
        histories: summaries; only the mean embedding is compared. mean: the mean of all lenders' (D,).
        users: (W,) ascending. keys: (W, D) their mean embeddings less the mean, at the end of the block.
        events: (E,) the block's events. last, counts: (W,) place of a lender's newest among them, and how many.
    """

    def __init__(self, log: EventLog, events: Ints, histories: Histories, known: tuple[Ints, Ints]) -> None:
        self.histories, self.events = histories, events
        self.users, self.counts = np.unique(log.user[events], return_counts=True)
        self.last = np.cumsum(self.counts) - 1
        keys = histories(known[0][self.users], known[1][self.users])[:, :-1]
        self.mean = keys.mean(0)
        self.keys = keys - self.mean


@dataclass(frozen=True)
class Method:
    """One device method.

    Attributes:
        family: how its numbers are served (stages/serve.py).
        prepare: (devices, the cloud's basis or None, everybody's events of the block) → the space. What is learned for it is
            written to a file, which is read again after a kill.
        fit: (devices, space, the rows of some users) → their numbers (U, K).
        own_basis: its Θ is not the cloud model's even where that has one.
        local: it learns from the user's own events of the block; if not, users without any get numbers too.
    """

    family: str
    prepare: Callable[["Devices", Basis | None, Ints], Any]
    fit: Callable[["Devices", Any, LocalRows], Float[Tensor, "U K"]]
    own_basis: bool = False
    local: bool = True


# What all users share


def _random_basis(devices: "Devices") -> Basis:
    config, (first, second) = devices.config, devices.hidden_sizes
    return new_basis(
        PatchShape((first, second), config.bottleneck), config.patch_size, stream(config.seed, "patch/basis")
    )


def _drawn_basis(devices: "Devices", given: Basis | None, events: Ints) -> tuple[Basis, Tensor]:
    """A random basis, whatever the cloud has, and zeros for μ."""
    basis = _random_basis(devices)
    return basis, torch.zeros(basis.size)


def _learned_basis(devices: "Devices", given: Basis | None, events: Ints) -> tuple[Basis, Tensor]:
    """The cloud's basis, or a new one, and the prior's mean μ, learned from everybody's events of the block."""
    config = devices.config
    with_mean = config.prior_mean == "learned"
    if given is not None and not with_mean:
        return given, torch.zeros(given.size)
    basis, mean, _ = learn_basis(
        (given or _random_basis(devices)).to(devices.device),
        devices.shared(events),
        metapatch.frozen_head(devices.head, devices.activations, events),
        devices.joint_fit("learn μ" if given is not None else "learn Θ"),
        with_mean=with_mean,
        fixed=given is not None,
    )
    return basis, mean


def _with_offset(devices: "Devices", given: Basis | None, events: Ints) -> tuple[Basis, Tensor]:
    """The same with one more number, the user's offset."""
    basis, mean = _learned_basis(devices, given, events)
    return devicemethods.with_offset(basis), torch.cat([mean, torch.zeros(1)])


def _patch_space(learn: Callable[["Devices", Basis | None, Ints], tuple[Basis, Tensor]]) -> Callable[..., PatchSpace]:
    """MetaPatch with the basis and the μ that `learn` gives."""

    def prepare(devices: "Devices", given: Basis | None, events: Ints) -> PatchSpace:
        work = devices.work
        if not work.finished("basis.safetensors"):
            basis, mean = learn(devices, given, events)
            write_prior_mean(work, mean)
            write_basis(work, basis)  # last: who finds it finds μ
        basis, mean = read_basis(work), read_prior_mean(work)
        return PatchSpace(devices.head, basis.to(devices.device), mean.to(devices.device))

    return prepare


def _item_space(devices: "Devices", given: Basis | None, events: Ints) -> ItemSpace:
    embeddings, config = item_embeddings(devices.model), devices.config
    if not devices.work.finished(MAP_FILE):
        start = devicemethods.new_map(embeddings, config.patch_size, stream(config.seed, "patch/map"))
        learned = devicemethods.learn_map(
            devices.head,
            embeddings,
            start,
            devices.shared(events),
            devices.activations,
            devices.joint_fit("learn M"),
        )
        devices.work.write_tensors(MAP_FILE, {"map": learned})
    return ItemSpace(devices.head, embeddings, devices.work.read_tensors(MAP_FILE)["map"].to(devices.device))


def _generated_space(devices: "Devices", given: Basis | None, events: Ints) -> GeneratedSpace:
    config, work = devices.config, devices.work
    histories = Histories(devices.log, item_embeddings(devices.model), config.generator_history)
    draws = torch.Generator().manual_seed(stream(config.seed, "patch/generator"))
    basis = given or _random_basis(devices)
    generator = Generator(histories.size, config.generator_size, basis.size, devices.log.profile_sizes, draws)
    generator.to(devices.device)
    if not work.finished("generator.safetensors"):
        basis = devicemethods.learn_generator(
            devices.head,
            basis,
            generator,
            histories,
            devices.shared(events),
            devices.activations,
            devices.joint_fit("learn the generator"),
        )
        write_basis(work, basis)
        work.write_tensors("generator.safetensors", {name: w.cpu() for name, w in generator.state_dict().items()})
    generator.load_state_dict(work.read_tensors("generator.safetensors"))
    return GeneratedSpace(devices.head, read_basis(work).to(devices.device), generator, histories)


# A user's numbers


def _exact(devices: "Devices", space: PatchSpace, rows: LocalRows) -> Tensor:
    config = devices.config
    return metapatch.fit_devices(
        space.head, space.basis, rows, config.steps, config.learning_rate, config.prior, mean=space.mean
    )


def _linearised(devices: "Devices", space: PatchSpace, rows: LocalRows) -> Tensor:
    offset, phi = devicemethods.linearised(space.head, space.basis, rows)
    return devicemethods.newton(offset, phi, rows, devices.config.prior, devices.config.newton_steps)


def _in_item_space(devices: "Devices", space: ItemSpace, rows: LocalRows) -> Tensor:
    offset, config = devicemethods.cloud_logits(space.head, rows), devices.config
    return devicemethods.newton(offset, space.features(rows), rows, config.prior, config.newton_steps)


def _last_layers(devices: "Devices", space: LayerSpace, rows: LocalRows) -> Tensor:
    config = devices.config
    return devicemethods.fit_layers(space, rows, config.steps, config.learning_rate, config.prior)


def _corrected(devices: "Devices", space: PatchSpace, rows: LocalRows) -> Tensor:
    config = devices.config
    return devicemethods.fit_corrected(
        space.head, space.basis, rows, config.steps, config.learning_rate, config.prior, space.mean
    )


def _generated(devices: "Devices", space: GeneratedSpace, rows: LocalRows) -> Tensor:
    return space.codes(rows, devices.known[0])


def _with_similar_users(devices: "Devices", space: PatchSpace, rows: LocalRows) -> Tensor:
    """MetaPatch on the user's own rows and, with less weight, on the newest events of similar users.

    Source: CoDA (Gu et al., arXiv 2201.10382): cloud samples that resemble the local ones against overfitting.
    Differs: what is retrieved are the events of users with similar histories, weighted by the similarity, in place of a
    learned filter of single samples. The cloud must hold those users' events: they leave their devices.
    """
    config = devices.config
    width = config.similar_users * config.similar_events * (1 + config.negatives)
    step = max(1, config.batch_rows // (rows.z1.shape[1] + width))
    codes = []
    for at in range(0, len(rows.users), step):
        index = torch.arange(at, min(at + step, len(rows.users)))
        some = LocalRows(
            rows.z1[index], rows.labels[index], rows.weights[index], rows.users[at : at + step], rows.items[index],
            rows.until[at : at + step],
        )  # fmt: skip
        codes.append(_exact(devices, space, _join(some, _similar_rows(devices, some))))
    return torch.cat(codes)


def _similar_rows(devices: "Devices", rows: LocalRows) -> LocalRows:
    """The newest events of the users who are similar to each user, weighted."""
    config, (start, _) = devices.config, devices.known
    lenders = devices.lenders
    query = lenders.histories(start[rows.users], rows.until)[:, :-1] - lenders.mean
    nearest, cosine = devicemethods.similar_users(
        query, torch.from_numpy(rows.users), lenders.keys, torch.from_numpy(lenders.users), config.similar_users
    )
    back = np.arange(config.similar_events)
    found = nearest.cpu().numpy()[:, :, None]
    there = (back < lenders.counts[found]) & (cosine.cpu().numpy()[:, :, None] > 0)  # (U, S, M)
    events = lenders.events[np.where(there, lenders.last[found] - back, 0)].reshape(len(found), -1)
    weights = (config.similar_weight * cosine[:, :, None] * torch.from_numpy(there).to(cosine)).flatten(1)
    distinct, place = np.unique(events, return_inverse=True)
    samples = devices.samples(distinct, "patch/negatives")
    z1 = devices.activations(distinct, samples.candidates)
    at = torch.from_numpy(place.reshape(events.shape))
    return replace(
        rows,
        z1=z1[at.to(z1.device)].flatten(1, 2),
        labels=samples.labels[at].flatten(1).to(devices.device),
        weights=(samples.weights[at].to(weights.device) * weights.unsqueeze(-1)).flatten(1).to(devices.device),
        items=samples.candidates[at].flatten(1),
    )


def _join(rows: LocalRows, more: LocalRows) -> LocalRows:
    return replace(
        rows,
        z1=torch.cat([rows.z1, more.z1], dim=1),
        labels=torch.cat([rows.labels, more.labels], dim=1),
        weights=torch.cat([rows.weights, more.weights], dim=1),
        items=torch.cat([rows.items, more.items], dim=1),
    )


#: `patch --method` → what it is
METHODS: dict[str, Method] = {
    "metapatch": Method("metapatch", _patch_space(_learned_basis), _exact),
    "linearised": Method("metapatch", _patch_space(_learned_basis), _linearised),
    "random-basis": Method("metapatch", _patch_space(_drawn_basis), _exact, own_basis=True),
    "label-correction": Method("metapatch", _patch_space(_with_offset), _corrected, own_basis=True),
    "similar-users": Method("metapatch", _patch_space(_learned_basis), _with_similar_users),
    "generated": Method("metapatch", _generated_space, _generated, own_basis=True, local=False),
    "item-space": Method("item-space", _item_space, _in_item_space, own_basis=True),
    "fine-tune": Method(
        "fine-tune", lambda devices, given, events: LayerSpace(devices.head), _last_layers, own_basis=True
    ),
}
