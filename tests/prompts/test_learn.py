"""The network of the router: what is saved is what was learned, and what is kept apart is not learned."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e .[distill]")

from edge_runtime.prompts import learned, router  # noqa: E402

from . import learn  # noqa: E402
from .learn import ANY, LABELS, Ensemble, Text, read, threshold  # noqa: E402
from .scoring import macro_f1  # noqa: E402

ROWS: list[dict[str, Any]] = [
    {"text": "he cannot breathe and his lips are blue", "flags": ["breathing"], "split": "learn"},
    {"text": "her lips turn blue, she gasps for air", "flags": ["breathing"], "split": "learn"},
    {"text": "the blue of the lips is lipstick", "flags": [], "split": "learn"},
    {"text": "which lipstick for dry lips", "flags": [], "split": "learn"},
    {"text": "dose of salbutamol", "template": "medication", "audience": "clinician", "split": "learn"},
    {"text": "is salbutamol bad for my baby", "template": "patient", "audience": "patient", "split": "learn"},
    {"text": "air hunger, SpO2 80", "template": "emergency", "audience": "clinician", "split": "tune"},
    {"text": "never to be learned", "flags": [], "split": "measured"},
    {"text": "nor this", "template": "general", "audience": "clinician", "split": "unseen"},
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(learn, "LEAST_SEEN", 1)
    monkeypatch.setattr(learn, "BATCH", 3)
    monkeypatch.setattr(learn, "N_EPOCHS", 30)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*ROWS, ROWS[0])), "utf-8")
    return path


def test_what_is_known_of_a_text(file: Path) -> None:
    texts = list(read([file]))
    assert len(texts) == 7
    assert [text.flags[ANY] for text in texts] == [1, 1, 0, 0, 0, 0, 1]
    assert [text.template >= 0 for text in texts] == [False] * 4 + [True] * 3
    assert texts[6].flags[0] == -1  # an emergency, but which one?
    assert "rule" in texts[0].hints
    assert not any("learned" in text.features for text in texts)


def told(ensemble: Ensemble, texts: list[Text]) -> Any:
    """Scores as they are saved with a limit of 1.5."""
    scores = ensemble.scores(texts)
    scores[:, ANY] -= 1.5
    return scores


def test_what_is_saved_scores_as_what_was_learned(file: Path, tmp_path: Path) -> None:
    texts = list(read([file]))
    ensemble = Ensemble(texts)
    ensemble.save(tmp_path / "learned.npz", limit=1.5)
    net = learned.Network(tmp_path / "learned.npz")
    right = told(ensemble, texts)
    for row, scores in zip(ROWS, right):
        reading = net.read(row["text"], router.seen(row["text"])[1])
        assert torch.allclose(torch.tensor([reading.scores[name] for name in LABELS]), scores, atol=0.1)
    assert right[0, ANY] > right[2, ANY]
    assert torch.equal(told(Ensemble(texts), texts), right)


def test_the_threshold_finds_the_share_that_was_asked_for(file: Path) -> None:
    by_rule, *_ = read([file])
    by_network = replace(by_rule, hints=frozenset())
    scores = torch.arange(100.0)
    limit = threshold(scores, [by_network] * 100, 0.9)
    assert sum(score >= limit for score in scores.tolist()) == 90
    # What the rules find need not be found again.
    limit = threshold(scores, [by_rule] * 50 + [by_network] * 50, 0.9)
    assert sum(score >= limit for score in scores.tolist()) == 40


def test_macro_f1_by_hand() -> None:
    pairs = Counter([(0, 0), (0, 1), (1, 1), (2, 2)])
    assert macro_f1(pairs) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
