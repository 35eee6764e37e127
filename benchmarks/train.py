"""One epoch of DIN as `dcclctl train` runs it, against the textbook form of the same model.

    python benchmarks/train.py [--data FOLDER] [--events 40960] [--threads 1]

Textbook: one row per (event, target), its history padded to L, the attention network on [q, k, q−k, q∗k], torch's own
modules, autograd, and torch.optim.Adam on all weights. Both have the same sizes (dcclctl's defaults: 1+4 targets,
L = 20, dropout 0.2) and take the same events in batches of the same size; both draw their negatives in the timed part.
"""

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from side_by_side import SAMPLE, Ratio, find_data, flags, in_turn, ingested, logs, show
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from dcclctl.events.log import EventLog
    from dcclctl.events.sampler import Samples
    from dcclctl.models.din import DinSettings

TARGET = 4.0
EVENTS = 40_960


class TextbookDin(nn.Module):
    """DIN as a paper's reader writes it down. Shapes: R rows (one target each), L history length, D embedding."""

    def __init__(self, log: "EventLog", settings: "DinSettings") -> None:
        super().__init__()
        self.n_categories = log.n_categories
        self.item_categories = log.item_categories
        self.category_counts = (log.item_categories < log.n_categories).sum(1, keepdim=True).clamp(min=1).float()
        self.item = nn.Embedding(log.n_items, settings.item_size)
        d = settings.item_size
        if log.n_categories:
            self.category = nn.Embedding(log.n_categories + 1, settings.category_size, padding_idx=log.n_categories)
            d += settings.category_size
        self.profile = nn.ModuleList(nn.Embedding(n, settings.profile_size) for n in log.profile_sizes)
        first, second = settings.hidden_sizes
        self.attention = nn.Sequential(
            nn.Linear(4 * d, settings.attention_size),
            nn.PReLU(settings.attention_size),
            nn.Linear(settings.attention_size, 1),
        )
        self.hidden = nn.Sequential(
            nn.Linear(3 * d + settings.profile_size * len(log.profile_sizes), first),
            nn.PReLU(first),
            nn.Dropout(settings.dropout),
            nn.Linear(first, second),
            nn.PReLU(second),
            nn.Dropout(settings.dropout),
            nn.Linear(second, 1),
        )

    def embed(self, items: Tensor) -> Tensor:
        """(...) → (..., D): the item's embedding and the mean of its categories'."""
        rows = self.item(items)
        if not self.n_categories:
            return rows
        categories = self.category(self.item_categories[items]).sum(-2) / self.category_counts[items]
        return torch.cat([rows, categories], dim=-1)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor, profile: Tensor) -> Tensor:
        """target (R,), history and mask (R, L), profile (R, F) → logits (R,)."""
        query, keys = self.embed(target), self.embed(history)
        q = query.unsqueeze(1).expand_as(keys)
        pairs = torch.cat([q, keys, q - keys, q * keys], dim=-1)
        weights = self.attention(pairs.flatten(0, 1)).view(mask.shape) * mask
        interest = (weights.unsqueeze(1) @ keys).squeeze(1)
        profiles = [table(profile[:, f]) for f, table in enumerate(self.profile)]
        return self.hidden(torch.cat([query, interest, query * interest, *profiles], dim=-1)).squeeze(-1)


def padded(log: "EventLog", samples: "Samples", length: int) -> tuple[Tensor, Tensor]:
    """Histories of all events, (E, L) each, as a data set class would hold them."""
    history, mask = log.histories(samples.events, length)
    missing = length - history.shape[1]
    return F.pad(history, (0, missing)), F.pad(mask, (0, missing))


def textbook_epoch(
    model: TextbookDin, optimiser: torch.optim.Optimizer, log: "EventLog", samples: "Samples", settings: "DinSettings"
) -> None:
    """One pass: shuffle the events, expand each to its 1+4 rows, step."""
    width = samples.candidates.shape[1]
    history, mask = padded(log, samples, settings.history)
    users = torch.from_numpy(log.user[samples.events])
    for batch in torch.randperm(len(users)).split(settings.batch_size):
        rows = batch.repeat_interleave(width)
        logits = model(samples.candidates[batch].flatten(), history[rows], mask[rows], log.profile[users[rows]])
        losses = F.binary_cross_entropy_with_logits(logits, samples.labels[batch].flatten(), reduction="none")
        weights = samples.weights[batch].flatten()
        loss = (losses * weights).sum() / weights.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def compare(data: Path | None, events: int, threads: int, times: int) -> list[Ratio]:
    """How many times faster than the textbook form one epoch over `events` random events is."""
    torch.set_num_threads(threads)
    return [compare_on(name, data, events, threads, times) for name in logs(["amazon-beauty"], data)]


def compare_on(name: str, data: Path | None, events: int, threads: int, times: int) -> Ratio:
    """`compare` on one log."""
    import numpy as np

    from dcclctl import Store
    from dcclctl.events.log import CLOUD, Block
    from dcclctl.events.sampling import permutation
    from dcclctl.models.din import DinKind, DinSettings
    from dcclctl.models.settings import FitSettings
    from dcclctl.models.training import FitState, Trainer, pick

    settings = DinSettings()
    with tempfile.TemporaryDirectory() as folder:
        dataset = ingested(name, data, Store(Path(folder)))
        log = dataset.log
    cloud = log.events_in(CLOUD)
    chosen = cloud[permutation(0, "bench/events", cloud)[:events]]

    textbook = TextbookDin(log, settings)
    adam = torch.optim.Adam(textbook.parameters(), lr=settings.learning_rate)
    ours = DinKind().new(log, settings, torch.Generator().manual_seed(0))
    trainer = Trainer(ours, log, [Block(CLOUD)], FitSettings.of(settings, 0, "bench"))
    trainer.group().events = chosen
    trainer.validation.samples = pick(trainer.validation.samples, np.arange(1))  # the textbook form validates nothing
    state = FitState.start(ours, trainer.validate())

    def plain() -> None:
        textbook_epoch(textbook, adam, log, trainer.group().sampler.draw(chosen), settings)

    def fast() -> None:
        nonlocal state
        state = trainer.epoch(state)

    seconds = in_turn({"textbook": plain, "dcclctl": fast}, times)
    rates = {way: len(chosen) / statistics.median(found) for way, found in seconds.items()}
    length = log.history_lengths(chosen, settings.history).mean()
    print(
        f"train, {name}: {len(chosen):,} events with {length:.1f} past events in the mean, {threads} thread(s): "
        f"textbook {rates['textbook']:,.0f}, dcclctl {rates['dcclctl']:,.0f} events/s"
    )
    target = None if name == SAMPLE else TARGET
    what = f"DIN training against the textbook form, {name}"
    return Ratio.faster(what, seconds["textbook"], seconds["dcclctl"], target)


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the epoch")
    arguments = parser.parse_args()
    data = find_data(arguments.data)
    show(compare(data, arguments.events, arguments.threads, arguments.times))


if __name__ == "__main__":
    main()
