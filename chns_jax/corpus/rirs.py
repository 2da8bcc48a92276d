"""Impulse responses of rooms: read from a folder, or simulated by the image-source method."""

from __future__ import annotations

import os

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.randomness import Purpose, generator
from chns_jax.config import Reverberation
from chns_jax.corpus.audio import AudioError, read_whole
from chns_jax.corpus.listing import all_audio_files

SPEED_OF_SOUND = 343.0  # metres a second
ROOM_METRES = np.array([[3.0, 3.0, 2.4], [10.0, 8.0, 4.0]])  # smallest and largest
DECAY_SECONDS = (0.2, 0.6)  # RT60
WALL_METRES = 0.5  # nobody is nearer to a wall
APART_METRES = 0.3  # nor to the microphone


def make_rirs(options: Reverberation, sample_rate: int, seed: int) -> np.ndarray | None:
    """Impulse responses (n, r) float32, the direct sound at 0, of energy 1; None when its
    probability is 0.

    They are drawn from `options.root`, or simulated for rooms drawn at random; a function of the
    config and the seed. Raises UserError when the folder holds nothing that can be read, or a file
    of silence.
    """
    if not options.probability:
        return None
    samples = max(1, round(options.seconds * sample_rate))
    if options.root is None:
        found = [
            simulate(generator(seed, Purpose.RIRS, i), samples, sample_rate)
            for i in range(options.responses)
        ]
    else:
        root = os.path.expanduser(options.root)
        files = all_audio_files(root, "augment.reverberation.root")
        order = generator(seed, Purpose.RIRS).permutation(len(files))[: options.responses]
        found = [_read(files[i], sample_rate) for i in np.sort(order)]
    return np.stack([_from_direct_sound(response, samples) for response in found])


def simulate(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """The impulse response (samples,) of a random rectangular room, between two random places."""
    room = rng.uniform(*ROOM_METRES)
    while True:
        source, microphone = rng.uniform(WALL_METRES, room - WALL_METRES, (2, 3))
        if np.linalg.norm(source - microphone) >= APART_METRES:
            break
    volume = room.prod()
    surface = 2 * (room[0] * room[1] + room[0] * room[2] + room[1] * room[2])
    # Eyring: the share of energy that a wall takes, for sound to fall by 60 dB in that time.
    absorbed = 1 - np.exp(-0.161 * volume / (surface * rng.uniform(*DECAY_SECONDS)))
    return image_sources(room, source, microphone, np.sqrt(1 - absorbed), samples, sample_rate)


def image_sources(
    room: np.ndarray,
    source: np.ndarray,
    microphone: np.ndarray,
    reflection: float,
    samples: int,
    sample_rate: int,
) -> np.ndarray:
    """The response (samples,) of a rectangular room (Allen and Berkley 1979).

    `room`, `source` and `microphone` are (3,) in metres; every wall returns `reflection` of the
    pressure. The source's mirror images at 2 l L + s and 2 l L - s along each axis, after |2 l| and
    |2 l - 1| reflections, arrive after distance / 343 m/s, weakened by 4 pi distance; an arrival
    between two samples is shared by both.
    """
    furthest = samples / sample_rate * SPEED_OF_SOUND
    offsets, bounces = [], []
    for axis in range(3):
        cell = np.arange(
            -int(furthest / (2 * room[axis])) - 1, int(furthest / (2 * room[axis])) + 2
        )
        place = [2 * cell * room[axis] + sign * source[axis] for sign in (1, -1)]
        offsets.append(np.concatenate(place) - microphone[axis])
        bounces.append(np.concatenate([np.abs(2 * cell), np.abs(2 * cell - 1)]))
    x, y, z = np.meshgrid(*(np.square(offset) for offset in offsets), indexing="ij", sparse=True)
    distance = np.sqrt(x + y + z)
    near = distance < furthest
    distance = distance[near]
    a, b, c = np.meshgrid(*bounces, indexing="ij", sparse=True)
    strength = reflection ** (a + b + c)[near] / (4 * np.pi * distance)
    arrival = distance / SPEED_OF_SOUND * sample_rate
    early = arrival.astype(np.int64)
    response = np.bincount(early, strength * (1 - (arrival - early)), samples + 1)
    response += np.bincount(early + 1, strength * (arrival - early), samples + 1)[: samples + 1]
    return response[:samples]


def _read(path: str, sample_rate: int) -> np.ndarray:
    try:
        response = read_whole(path, sample_rate).astype(np.float64)
    except AudioError as error:
        raise UserError(f"{error}: leave it out of augment.reverberation.root") from error
    if not response.any():
        raise UserError(f"{path} is silent: leave it out of augment.reverberation.root")
    return response


def _from_direct_sound(response: np.ndarray, samples: int) -> np.ndarray:
    """The response from its loudest sample on, of energy 1."""
    kept = response[np.abs(response).argmax() :][:samples]
    kept = np.pad(kept, (0, samples - len(kept)))
    return (kept / np.linalg.norm(kept)).astype(np.float32)
