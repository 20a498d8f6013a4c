"""Pictures for people: the one module that draws. Pixels are shown 1:1 or enlarged by whole numbers, never resampled.

Files are PNG, written aside and renamed, so that a picture is whole or not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INK, FAINT, PAPER = "#1b1f24", "#6a737d", "#ffffff"
COLOURS = {"real": "#1b1f24", "synthetic": "#d1495b", "sketch": "#3a7ca5", "real, other half": "#9aa5b1"}
SPARE = ("#d1495b", "#3a7ca5", "#66a182", "#edae49", "#8d6a9f")
DPI = 100
GAP, MARGIN, CAPTION, TITLE = 10, 16, 22, 34  # pixels


@dataclass(frozen=True)
class Tone:
    """How brightness becomes grey: (x - low) / (high - low), through asinh(softening x) where that is above 0.

    Attributes:
      low, high: what becomes black and white, image units.
      softening: steepness of the dark end; 0 = linear.
    """

    low: float
    high: float
    softening: float = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Grey values, float32 [*S] in [0, 1]."""
        y = (np.asarray(image, np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        y = np.clip(y, 0, 1)
        return np.arcsinh(y * self.softening) / np.arcsinh(self.softening) if self.softening else y


def fit_tone(volumes: Sequence[np.ndarray]) -> Tone:
    """The tone that shows these volumes well: from their 0.5 to their 99.8 percentile.

    Where the mean of what is brighter than the background would be darker than a third of the range, the dark end is
    made steeper until it is not, so that dim cells are seen beside bright ones.
    """
    voxels = np.concatenate([np.asarray(v, np.float32).reshape(-1)[:: max(1, v.size // 200_000)] for v in volumes])
    voxels = voxels[np.isfinite(voxels)]
    low, high = (float(q) for q in np.percentile(voxels, (0.5, 99.8))) if voxels.size else (0.0, 1.0)
    if not high > low:
        low, high = (float(voxels.min()), float(voxels.max())) if voxels.size else (0.0, 1.0)
    if not high > low:
        return Tone(low, low + 1.0)
    level = np.clip((voxels - low) / (high - low), 0, 1)
    background = np.median(level[level <= np.median(level)])
    spread = 1.4826 * np.median(np.abs(level[level <= np.median(level)] - background))
    signal = level[level > background + 4 * max(spread, 1e-3)]
    if not signal.size:
        return Tone(low, high)
    # 1.5 keeps what noise there is in the background dark.
    for softening in (0.0, 3.0, 6.0, 12.0, 24.0):
        tone = Tone(low, high, softening)
        if np.median(tone(low + signal * (high - low))) >= 0.33:
            break
    return tone
