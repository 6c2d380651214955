"""The committed run of D4M and Minimax, and its table in the docs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import generative

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_run() -> None:
    run = json.loads((ROOT / "benchmarks/results/generative/smoke.json").read_text())
    assert generative.table(run) in (ROOT / "docs" / "generative.md").read_text()
    cells = run["compared"]["cells"]
    means = {(cell["method"], cell["regime"]): cell["mean"] for cell in cells}
    assert set(means) == {(s, r) for s in generative.SHOWN for r in ("HL", "SL", "SL+KD")}
    assert all(len(cell["accuracies"]) >= 3 for cell in cells)
    for regime in ("HL", "SL", "SL+KD"):
        for name in ("D4M", "Minimax"):
            assert means[name, regime] > means["noise", regime] + 0.05
    for rates in run["images_per_second"].values():
        assert set(rates) == {"1", "20"}


def test_the_models_learn_what_the_script_trains_them_for(monkeypatch) -> None:
    """The noise that a trained model predicts is nearer than none, for both kinds."""
    import torch

    from pyddfast.data import load

    data = load("fashion-mnist-mini").subset(range(200))
    monkeypatch.setattr(generative, "BATCH", 20)
    latents = torch.randn(10, 4, 7, 7, generator=torch.Generator().manual_seed(0))[data.labels]
    for kind in ("UNet", "DiT"):
        monkeypatch.setattr(generative, f"{kind.upper()}_STEPS", 20)
        torch.manual_seed(0)
        if kind == "UNet":
            unet, text, _ = generative.train_unet(data, latents)
            states = text(
                generative.tokenizer()(
                    [*data.class_names, ""], padding="max_length", return_tensors="pt"
                ).input_ids
            ).last_hidden_state

            def predict(x, t, ids, dropped, unet=unet, states=states):
                return unet(x, t, states[data.labels[ids]]).sample
        else:
            dit, _ = generative.train_dit(data, latents)

            def predict(x, t, ids, dropped, dit=dit):
                return dit(x, timestep=t, class_labels=data.labels[ids]).sample

        with torch.no_grad():
            loss = generative.noise_loss("sd" if kind == "UNet" else "dit", latents, predict)
            assert float(loss(999, torch.arange(0, 200, 4))) < 0.8  # 1: the noise's own variance
