"""What kind of question a text is: learns the network of `edge_runtime/prompts` from labelled texts.

Small enough for two cores and a few minutes. What the rules of the runtime find in a text is given to it as
hints, so it has to be learned again when they change. Must not be needed to run anything.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from edge_runtime.prompts import learned, router
from edge_runtime.prompts.red_flags import rules

from .scoring import macro_f1

TEXTS = Path(__file__).parent
KEPT_APART = ("unseen", "measured")  # splits that only measure

FLAGS = [f"{router.FLAG}{id}" for id in rules().ids]
LABELS = [*FLAGS, router.ANY_FLAG, *router.TEMPLATES, router.LAY]
ANY, FIRST, LAST = len(FLAGS), len(FLAGS) + 1, len(LABELS) - 1
# Templates of questions that speak of no emergency, and of one; the others may or may not.
CALM = ("general", "prevention", "patient", "medication", "laboratory")

N_NETS, N_HIDDEN = 2, 32  # the mean of two is better than one of twice the size
LEAST_SEEN = 4  # texts with a feature, so that it is learned
DROPPED = 0.6  # of the features of a text, while it learns
N_EPOCHS, BATCH, RATE, DECAY = 16, 64, 6e-3, 1e-2
err = Console(stderr=True)


@dataclass(frozen=True)
class Text:
    """A labelled text, as the network sees it.

    Attributes:
        flags: 1, 0 or -1 for unknown, by id and for any.
        template: its number, or -1.
        lay: 1, 0 or -1.
    """

    features: frozenset[str]
    hints: frozenset[str]
    flags: tuple[float, ...]
    template: int
    lay: float
    held_out: bool


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="JSON lines with text, and flags or template and audience.")
    ] = None,
    recall: Annotated[
        float,
        typer.Option(help="Share of emergencies to be flagged, of a quarter that is not learned.", max=1),
    ] = 0.985,
    out: Annotated[Path, typer.Option(help="The file that is written.")] = learned.FILE,
) -> None:
    """Learn which template a question asks for and which emergency it may speak of."""
    torch.manual_seed(0)
    texts = list(read(files or [TEXTS / f"{name}.jsonl" for name in ("learn", "red_flags", "router")]))
    kept = [text for text in texts if not text.held_out]
    apart = [text for text in texts if text.held_out]
    err.print(f"{len(texts):,} texts, {len(apart):,} of them held out first")
    scores = Ensemble(kept).scores(apart)
    limit = threshold(scores[:, ANY], apart, recall)
    tell(scores, apart, limit)
    Ensemble(texts).save(out, limit)
    err.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def read(files: Sequence[Path]) -> Iterator[Text]:
    """Every text once, but for the splits that are kept apart."""
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row.get("split") not in KEPT_APART:
                rows.setdefault(row["text"], row)
    for row in track(list(rows.values()), "reading", console=err):
        words, hints = router.seen(row["text"])
        template, flags = row.get("template"), [-1.0] * (len(FLAGS) + 1)
        if "flags" in row:
            flags = [float(name.removeprefix(router.FLAG) in row["flags"]) for name in FLAGS]
            flags.append(float(any(flags)))
        elif template in CALM:
            flags = [0.0] * len(flags)
        elif template == "emergency":
            flags[ANY] = 1.0
        yield Text(
            frozenset(feature for _, feature in learned.features(words)),
            frozenset(hints),
            tuple(flags),
            router.TEMPLATES.index(template) if template else -1,
            float(row["audience"] == "patient") if template else -1.0,
            row.get("split") == "learn" and crc32(row["text"].encode()) % 4 == 0,
        )


class Net(nn.Module):  # type: ignore[misc]
    """See `learned.Network`."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(n_features, N_HIDDEN + len(LABELS), mode="sum")
        nn.init.normal_(self.vectors.weight[:, :N_HIDDEN], std=0.3)
        nn.init.zeros_(self.vectors.weight[:, N_HIDDEN:])
        self.bias = nn.Parameter(torch.zeros(N_HIDDEN))
        self.inner, self.outer = nn.Linear(N_HIDDEN, N_HIDDEN), nn.Linear(N_HIDDEN, len(LABELS))
        self.drop = nn.Dropout(0.2)

    def forward(self, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        summed = self.vectors(rows, starts, per_sample_weights=weights)
        hidden = self.drop((summed[:, :N_HIDDEN] + self.bias).relu())
        found: Tensor = self.outer(self.inner(hidden).relu()) + summed[:, N_HIDDEN:]
        return found


class Ensemble:
    """Networks that learned the same texts from other beginnings."""

    def __init__(self, texts: Sequence[Text]) -> None:
        seen = Counter(feature for text in texts for feature in text.features | text.hints)
        self.rows = {name: i for i, name in enumerate(n for n, times in seen.items() if times >= LEAST_SEEN)}
        self.nets = [self._learn(texts, seed) for seed in range(N_NETS)]

    def scores(self, texts: Sequence[Text]) -> Tensor:
        """(n_texts, n_labels)"""
        with torch.no_grad():
            return torch.stack([net(*self._batch(texts)) for net in self.nets]).mean(0)

    def _batch(self, texts: Sequence[Text], chance: random.Random | None = None) -> tuple[Tensor, ...]:
        """Rows of vectors, where each text's begin, and their weights; some left out by `chance`."""
        rows: list[int] = []
        starts, weights = [], []
        for text in texts:
            starts.append(len(rows))
            words, hints = (
                [self.rows[name] for name in sorted(names) if name in self.rows]
                for names in (text.features, text.hints)
            )
            share, left = learned.share(len(words)), 1.0
            if chance:
                words, hints = ([row for row in some if chance.random() > DROPPED] for some in (words, hints))
                left = (1 - DROPPED) ** 0.5
            rows += words + hints
            weights += [share / left] * len(words) + [learned.HINT / left] * len(hints)
        return torch.tensor(rows, dtype=torch.int64), torch.tensor(starts), torch.tensor(weights)

    def _learn(self, texts: Sequence[Text], seed: int) -> Net:
        torch.manual_seed(seed)
        chance = random.Random(seed)
        net = Net(len(self.rows))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
        n_steps = len(texts) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=N_EPOCHS * n_steps + 1)
        order = list(texts)
        for _ in track(range(N_EPOCHS), f"network {seed + 1} of {N_NETS}", console=err):
            chance.shuffle(order)
            for step in range(n_steps):
                some = order[step * BATCH : (step + 1) * BATCH]
                optimizer.zero_grad()
                loss(net(*self._batch(some, chance)), some).backward()
                optimizer.step()
                schedule.step()
        net.eval()
        return net

    def save(self, path: Path, limit: float) -> None:
        """One network of all: side by side in the hidden layers, the mean in the last."""
        order = sorted(self.rows, key=learned.key)
        at = [self.rows[name] for name in order]
        weights = [net.vectors.weight[at].detach() for net in self.nets]
        straight = torch.stack([weight[:, N_HIDDEN:] for weight in weights]).mean(0)
        vectors = torch.cat([*(weight[:, :N_HIDDEN] for weight in weights), straight], 1)
        scales = vectors.abs().amax(0).clamp(min=1e-9) / 127
        outer_bias = torch.stack([net.outer.bias for net in self.nets]).mean(0)
        outer_bias[ANY] -= limit  # from 0 on it is told
        arrays = {
            "vectors": (vectors / scales).round().to(torch.int8),
            "scales": scales,
            "bias": torch.cat([net.bias for net in self.nets]),
            "inner": torch.block_diag(*(net.inner.weight for net in self.nets)),
            "inner_bias": torch.cat([net.inner.bias for net in self.nets]),
            "outer": torch.cat([net.outer.weight for net in self.nets], 1) / N_NETS,
            "outer_bias": outer_bias,
        }
        keys = np.array([learned.key(name) for name in order], np.uint32)
        held: dict[str, Any] = {name: array.detach().numpy() for name, array in arrays.items()}
        np.savez_compressed(path, keys=keys, labels=np.array(LABELS), **held)


def loss(scores: Tensor, texts: Sequence[Text]) -> Tensor:
    """Nats a text over what is known of each."""
    flags = torch.tensor([text.flags for text in texts])
    templates = torch.tensor([text.template for text in texts])
    lay = torch.tensor([text.lay for text in texts])
    of_flags = binary_cross_entropy_with_logits(scores[:, :FIRST], flags.clamp(min=0), reduction="none")
    of_flags = of_flags * (flags >= 0) * torch.tensor([0.3] * ANY + [1.0])
    of_templates = cross_entropy(scores[:, FIRST:LAST], templates, ignore_index=-1, reduction="sum")
    of_lay = binary_cross_entropy_with_logits(scores[:, LAST], lay.clamp(min=0), reduction="none") * (
        lay >= 0
    )
    return (of_flags.sum() + of_templates + of_lay.sum()) / len(texts)


def threshold(scores: Tensor, texts: Sequence[Text], recall: float) -> float:
    """From which score on to flag, so that rules and network together find this share of the emergencies."""
    found = [
        float("inf") if "rule" in text.hints else score
        for score, text in zip(scores.tolist(), texts)
        if text.flags[ANY] == 1 and text.template < 0
    ]
    return sorted(found, reverse=True)[round(recall * len(found)) - 1]


def tell(scores: Tensor, texts: Sequence[Text], limit: float) -> None:
    """What the quarter that was not learned says."""
    flagged = [score >= limit or "rule" in text.hints for score, text in zip(scores[:, ANY].tolist(), texts)]
    of_flags = [(text.flags[ANY], hit) for text, hit in zip(texts, flagged) if text.template < 0]
    rest = [hit for text, hit in zip(texts, flagged) if text.template >= 0 and text.flags[ANY] == 0]
    found, alarms = ([hit for known, hit in of_flags if known == value] for value in (1, 0))
    pairs = [
        (text.template, at)
        for text, at in zip(texts, scores[:, FIRST:LAST].argmax(1).tolist())
        if text.template >= 0
    ]
    err.print(
        f"emergencies found {np.mean(found):.3f} of {len(found)}, near misses flagged {np.mean(alarms):.3f} "
        f"of {len(alarms)}, other questions {np.mean(rest):.3f} of {len(rest)}; macro-F1 of {len(pairs)} "
        f"templates {macro_f1(Counter(pairs)):.3f}",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
