"""One step of training: a pure function of a state and a batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Config
from chns_jax.devices.sharding import for_own_rows, on_cpu
from chns_jax.encoders.batch_norm import merged, of_each_layer, updated
from chns_jax.encoders.features import frame_count, log_mel
from chns_jax.encoders.initial import initial_variables
from chns_jax.runs.state import TrainState
from chns_jax.sampling.plan import hard_count
from chns_jax.training.augment import augment_audio, mask_spectrogram, slot_keys
from chns_jax.training.gradient_caching import embed_in_micro_batches
from chns_jax.training.losses import bounded, init_params, training_loss
from chns_jax.training.optimizer import schedule


def init(
    config: Config, encoder: nn.Module, tx: optax.GradientTransformation, speakers: int
) -> TrainState:
    """The state before the first step, for a corpus of so many training speakers: a function of
    the config and its seed."""
    seed = int(generator(config.training.seed, Purpose.ENCODER).integers(2**31))
    frames = frame_count(config.crop_samples, config.features)
    with on_cpu():
        initial = initial_variables(encoder, seed, frames, config.features.bands)
        params = {"encoder": initial["params"]}
        of_loss = init_params(
            config.loss, jax.random.fold_in(jax.random.key(seed), 1),
            embedding=config.encoder.embedding, classes=classes_of(config, speakers),
        )  # fmt: skip
        if of_loss:  # orbax stores no empty tree
            params["loss"] = of_loss
        variables = {"params": params, "batch_stats": initial["batch_stats"]}
        average = jax.tree.map(jnp.copy, variables) if config.training.average_decay else None
        return TrainState(jnp.int32(0), variables, tx.init(params), average)


def classes_of(config: Config, speakers: int) -> int:
    """The classes of so many training speakers: more, where other speeds are other speakers."""
    speed = config.augment.speed
    return speakers * (1 + len(speed.factors)) if speed.new_speakers else speakers


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    rirs: Float[Array, "n r"] | None = None,
    clustered: bool = False,
    *,
    config: Config,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    speakers: int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update with a batch as of `training_batches`; rows i and i + b are two utterances of one
    speaker. Rows after these 2b are padding, which makes their number one that devices can share.

    `rirs` are room impulse responses, where the config asks for them; `clustered` says whether the
    batch was composed from clusters; `speakers` is the number of training speakers. Returns the
    next state and {"loss", "learning_rate", "z"}, z (2b, d) being the L2-normalised embeddings, and
    what else `training_loss` tells. Under jit with rows split over the mesh, the loss is
    global, and so are the batch statistics: those of all rows, or with `training.micro_batch` of a
    micro-batch (see gradient_caching.py). Running statistics move once, whatever the micro-batches.
    """
    seed, step, rows = config.training.seed, state.step, 2 * config.sampler.speakers
    padded, micro_batch = len(batch["audio"]), config.training.micro_batch
    slot = jnp.arange(padded)
    batch = {**batch, "slot": slot}
    frozen = clustered and config.training.batch_statistics == "running"
    only_easy = clustered and config.training.batch_statistics == "easy"
    if only_easy or padded > rows:
        counted = slot < rows
        if only_easy:
            counted &= slot % config.sampler.speakers >= hard_count(config.sampler)
        batch["counted"] = counted.astype(jnp.float32)

    def make_frames(batch, step, rirs):
        """Log-mel and labels of some rows of the batch, augmented."""
        audio, labels = augment_audio(
            batch, rirs, config.augment, seed=seed, step=step, samples=config.crop_samples,
            speakers=speakers, pairs=None if config.sampler.kind == "utterances" else rows // 2,
        )  # fmt: skip
        frames = log_mel(audio, config.features)
        if config.augment.spec_augment.probability:
            keys = slot_keys(seed, step, batch["slot"])
            frames = mask_spectrogram(frames, config.augment.spec_augment, keys)
        return frames, labels

    def embed(params, batch):
        """Moments of the batch, and the embeddings and labels of some rows of it."""
        frames, labels = for_own_rows(make_frames, mesh)(batch, step, rirs)
        embedding, made = encoder.apply(
            {"params": params, "batch_stats": state.variables["batch_stats"]},
            frames,
            not frozen,
            counted_b=batch.get("counted"),
            mutable=["moments"],
        )
        return jax.lax.stop_gradient(made.get("moments", {})), (embedding, labels)

    def loss_of(params):
        embed_rows = partial(embed, params["encoder"])
        if micro_batch is None:
            moments, (embedding, labels) = embed_rows(batch)
        else:
            count = rows // micro_batch
            moments, (embedding, labels) = embed_in_micro_batches(
                embed_rows, batch, rows=padded, micro_batch=padded // count
            )
            moments = of_each_layer(merged, moments)
        of_loss = params.get("loss", {})
        loss, metrics = training_loss(embedding, labels, of_loss, config.loss, mesh, rows, step)
        return loss, (moments, {"loss": loss, **metrics})

    params, batch_stats = state.variables["params"], state.variables["batch_stats"]
    with jax.default_matmul_precision(config.training.product_precision):
        gradient, (moments, metrics) = jax.grad(loss_of, has_aux=True)(params)
    metrics["learning_rate"] = schedule(config.optimizer, config.training.steps)(step)
    updates, optimizer = tx.update(gradient, state.optimizer, params)
    moved: dict[str, Any] = dict(optax.apply_updates(params, updates))  # pyright: ignore
    if "loss" in moved:
        moved["loss"] = bounded(moved["loss"], config.loss)
    if moments:
        batch_stats = of_each_layer(updated, batch_stats, moments)
    variables = {"params": moved, "batch_stats": batch_stats}
    average = state.average
    if average is not None:
        average = moving_average(average, variables, step, config.training.average_decay)
    return TrainState(step + 1, variables, optimizer, average), metrics


def moving_average(
    average: dict[str, Any], variables: dict[str, Any], step: Int[Array, ""] | int, decay: float
) -> dict[str, Any]:
    """The exponential moving average of variables after update `step`, counted from 0.

    It keeps a share of `decay`, but no more than (1 + n) / (10 + n) after n updates, so that the
    variables of the start are soon forgotten: as TensorFlow's ExponentialMovingAverage. Running
    statistics are averaged with the parameters that they are of.
    """
    updates = step + 1.0
    kept = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    return optax.incremental_update(variables, average, 1.0 - kept)  # pyright: ignore
