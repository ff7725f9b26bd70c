"""Closed forms and a slow, direct SSIM against the quick one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vqdq.errors import UserError
from vqdq.metrics import images


def _noise(seed: int, shape: tuple[int, ...] = (24, 20, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_psnr_of_a_constant_offset_is_its_closed_form():
    a = np.full((16, 16, 3), 0.25)
    for offset in (0.5, 0.1, 0.01):
        assert images.psnr(a, a + offset) == pytest.approx(-20 * math.log10(offset), abs=1e-9)


def test_psnr_of_one_changed_byte():
    a = np.zeros((16, 16, 3), np.uint8)
    b = a.copy()
    b[3, 4, 1] = 255
    assert images.psnr(a, b) == pytest.approx(10 * math.log10(16 * 16 * 3), abs=1e-9)
    found = images.compare(a, b)
    assert found.max_error == 1
    assert found.mean_error == pytest.approx(1 / (16 * 16 * 3))
    assert found.changed == 1 / 256


def test_equal_pictures_are_infinitely_close():
    picture = Image.fromarray((_noise(0) * 255).astype(np.uint8))
    found = images.compare(picture, picture.copy())
    assert found.psnr_db == math.inf
    assert found.ssim == pytest.approx(1, abs=1e-12)
    assert found.identical
    assert found.to_json()["psnr_db"] is None


def test_ssim_equals_a_slow_direct_computation():
    a, b = _noise(1), np.clip(_noise(1) + 0.2 * _noise(2), 0, 1)
    assert images.ssim(a, b) == pytest.approx(_direct_ssim(a, b), abs=1e-12)


def test_ssim_of_two_constants_is_the_luminance_term():
    x, y = 0.3, 0.7
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert images.ssim(np.full((12, 12), x), np.full((12, 12), y)) == pytest.approx(expected)


def test_ssim_of_a_scaled_picture_without_mean_is_the_structure_term():
    # A window of zero mean has l = 1 and cs = (2 s v + C2) / (v + s² v + C2).
    pattern = _noise(3, (11, 11)) - 0.5
    kernel = _kernel()
    pattern -= (kernel * pattern).sum()
    variance = (kernel * pattern**2).sum()
    scale = 0.4
    expected = (2 * scale * variance + 9e-4) / (variance * (1 + scale**2) + 9e-4)
    assert images.ssim_map(pattern, scale * pattern)[0, 0] == pytest.approx(expected, abs=1e-12)


def test_ssim_is_symmetric_and_falls_with_noise():
    a = _noise(4)
    values = [images.ssim(a, np.clip(a + s * (_noise(5) - 0.5), 0, 1)) for s in (0.05, 0.2, 0.8)]
    assert values == sorted(values, reverse=True)
    b = _noise(6)
    assert images.ssim(a, b) == pytest.approx(images.ssim(b, a), abs=1e-15)


def test_kinds_of_pictures_agree():
    array = (_noise(7) * 255).astype(np.uint8)
    other = (_noise(8) * 255).astype(np.uint8)
    expected = images.compare(array, other)
    assert images.compare(Image.fromarray(array), torch.from_numpy(other)) == expected
    assert images.compare(array / 255, other / 255) == expected


def test_error_map_points_at_the_change():
    a = np.zeros((12, 12, 3))
    b = a.copy()
    b[2, 5] = (0.3, 0.6, 0.0)
    found = images.error_map(a, b)
    assert found.shape == (12, 12)
    assert found[2, 5] == pytest.approx(0.3)
    assert found.sum() == pytest.approx(0.3)


def test_sizes_must_agree():
    with pytest.raises(UserError, match="20 × 24 × 3 and 12 × 12 × 3"):
        images.compare(_noise(0), _noise(0, (12, 12, 3)))
    with pytest.raises(UserError, match="at least 11"):
        images.ssim(_noise(0, (8, 8)), _noise(1, (8, 8)))


def test_latent_angle_and_sqnr():
    x = torch.tensor([3.0, 0.0])
    assert images.cosine(x, torch.tensor([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert images.cosine(x, 7 * x) == pytest.approx(1)
    assert images.sqnr_db(x, x + 0.03 * torch.tensor([0.0, 1.0])) == pytest.approx(40, abs=1e-5)
    assert images.sqnr_db(x, x) == math.inf
    assert math.isnan(images.cosine(x, 0 * x))


def _kernel() -> np.ndarray:
    offsets = np.arange(11) - 5
    squares = offsets[:, None] ** 2 + offsets[None] ** 2
    weights = np.exp(-squares / (2 * 1.5**2))
    return weights / weights.sum()


def _direct_ssim(a: np.ndarray, b: np.ndarray) -> float:
    weights, found = _kernel(), []
    for channel in range(a.shape[2]):
        for row in range(a.shape[0] - 10):
            for column in range(a.shape[1] - 10):
                x = a[row : row + 11, column : column + 11, channel]
                y = b[row : row + 11, column : column + 11, channel]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                found.append(top / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(found))
