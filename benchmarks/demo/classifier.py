"""Trains a small digit classifier and writes it as Triton models.

The data is scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 grey values, half of
them to train, half to ask about. The network has one hidden layer and takes a second to train.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from tests import models

SEED = 7
MODEL = "digits"
MODEL_WITH_TRITONS_BATCHER = "digits_dynamic"


@dataclass(frozen=True)
class TestSet:
    """Images FP32[n, 64] and their digits."""

    images: npt.NDArray[np.float32]
    digits: npt.NDArray[np.int32]


def train() -> tuple[MLPClassifier, TestSet]:
    """A classifier, and the images it has not seen."""
    data = load_digits()
    images = (data.data / 16.0).astype(np.float32)
    digits = data.target.astype(np.int32)
    known, unseen, known_digits, unseen_digits = train_test_split(
        images, digits, test_size=0.5, random_state=SEED, stratify=digits
    )
    network = MLPClassifier(hidden_layer_sizes=(64,), max_iter=400, tol=1e-3, random_state=SEED)
    network.fit(known, known_digits)
    return network, TestSet(unseen, unseen_digits)


def write_repository(
    repository: Path, network: MLPClassifier, *, compare_batchers: bool = False
) -> None:
    """Writes the model for a scheduler in front, to compare also with Triton's own batcher."""
    batchers: dict[str, models.DynamicBatching | None] = {MODEL: None}
    if compare_batchers:
        batchers[MODEL_WITH_TRITONS_BATCHER] = models.DynamicBatching()
    for name, dynamic_batching in batchers.items():
        models.write_model(
            repository,
            name,
            source=Path(__file__).with_name("triton_model.py"),
            inputs=[models.Tensor("IMAGE", "FP32", (64,))],
            outputs=[
                models.Tensor("DIGIT", "INT32", (1,)),
                models.Tensor("PROBABILITIES", "FP32", (10,)),
            ],
            max_batch_size=64,
            dynamic_batching=dynamic_batching,
        )
        weights = {
            f"{kind}{layer}": values.astype(np.float32)
            for kind, layers in (("weights", network.coefs_), ("bias", network.intercepts_))
            for layer, values in enumerate(layers)
        }
        np.savez(repository / name / "1" / "network.npz", **weights)
