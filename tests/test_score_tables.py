"""Rows of scores: which real images a set is compared with."""

from __future__ import annotations

import numpy as np

from paella_jax.encoders.feature_network import Features
from paella_jax.reports.gathered import Gathered, first
from paella_jax.reports.scores import distances, part, real_against_real


def gathered(vectors):
    return Gathered(Features(vectors, None), np.zeros(len(vectors), bool))


def test_real_images_are_of_every_class_of_data_in_the_order_of_its_classes():
    draw = np.random.default_rng(0)
    centres = 3.0 * draw.normal(size=(10, 16))
    of_classes = lambda classes: gathered(centres[classes] + draw.normal(size=(len(classes), 16)))
    real = of_classes(np.arange(200) % 10)
    training = of_classes(np.sort(np.arange(1000) % 10))
    row = real_against_real(real, training, 100)
    assert row["name"] == "real images (100 of the training against 200)"
    spread = distances(part(training, first(np.arange(1000), 100)), real)
    one_class = distances(part(training, slice(0, 100)), real)
    assert row["fid"] == spread["fid"] and row["recall"].value > 0.8
    assert one_class["fid"].value > 5 * row["fid"].value
