"""Run by torchrun in test_world.py: trains a few steps in several processes, and rank 0 writes the weights."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_worlds import fit_settings, random_log
from torch.distributed import destroy_process_group

from dcclctl.events.log import CLOUD, Block
from dcclctl.models.sequence import SasrecKind, SequenceSettings
from dcclctl.models.training import FitState, Trainer, snapshot
from dcclctl.models.world import World


def trained(world: World) -> dict[str, torch.Tensor]:
    """Weights after two epochs. Nothing that is drawn depends on the number of processes, and all events weigh the same."""
    log = random_log(n_users=30, n_items=20, seed=4)
    model = SasrecKind().new(log, SequenceSettings(item_size=8, history=6), torch.Generator().manual_seed(0))
    settings = fit_settings(batch_size=24, epochs=2, dropout=0.0, shared_negatives=7)
    trainer = Trainer(model, log, [Block(CLOUD)], settings, world=world)
    state = FitState.start(model, trainer.validate())
    for _ in range(2):
        state = trainer.epoch(state)
    return snapshot(model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"))
    weights = trained(world)
    sums = [weight.double().sum().reshape(1) for weight in weights.values()]
    mine = [each.clone() for each in sums]
    world.sum(sums)
    assert all(torch.equal(total, world.size * own) for total, own in zip(sums, mine, strict=True)), "weights differ"
    if world.leads:
        save_file(weights, Path(sys.argv[1]))
    destroy_process_group()
