"""What every peer shares: the library behind it, found without importing it, loaded when used."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params

P = TypeVar("P", bound=Params)
EVERY_PEER = "pip install 'vqdq[peers]'"


class PeerCodec(Codec[P]):
    """A codec whose arithmetic is another library's.

    Class attributes: `library` (what pip installs), `modules` (what must be importable: the library
    first, then dependencies of it that people have been found without).
    """

    library: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    row_scales = False

    def __init__(self, params: P) -> None:
        command = self.missing()
        if command:
            raise UserError(
                f'the method "{self.name}" needs {command.removeprefix("pip install ")}, '
                "which is not installed.",
                remedy=f"Run {command}, or {EVERY_PEER} for every peer.",
            )
        super().__init__(params)

    @classmethod
    def missing(cls) -> str:
        """Returns the command that installs what is absent, "" when the codec can be used."""
        absent = [module for module in cls.modules if not _installed(module)]
        if cls.modules[0] in absent:  # pip brings the others
            return f"pip install {cls.library}"
        return f"pip install {' '.join(absent)}" if absent else ""

    @abstractmethod
    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Returns what the library stores of a float32 weight [out, in]."""

    @abstractmethod
    def _dequantize(self, packed: Packed) -> torch.Tensor:
        """Returns the library's reconstruction, [out, in] in any float dtype."""

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del stats  # no peer here looks at the inputs
        with _quiet(), torch.no_grad():
            tensors = self._quantize(weight, shape, generator)
        packed = Packed(codec=self.name, params=self.params, shape=shape, tensors=tensors)
        if not bool(torch.isfinite(self.decode(packed)).all()):
            largest = float(weight.abs().max())
            raise UserError(
                f"the scale of weights up to {largest:.3g} does not fit in 16 bits.",
                remedy="Check the checkpoint, or keep this layer in 16 bits.",
            )
        return tensors

    def decode(self, packed: Packed) -> torch.Tensor:
        """Returns the library's reconstruction, float32 [out, in] on the tensors' device."""
        with _quiet(), torch.no_grad():
            return self._dequantize(packed).float()


def load(module: str) -> Any:
    """Returns an imported module of a peer, without what it says while it is imported.

    Raises:
        UserError: it is there but cannot be imported.
    """
    try:
        return _load(module)
    except ImportError as error:
        raise UserError(
            f"{module} is installed but cannot be imported: {error}.",
            remedy=f"Run {EVERY_PEER} to install versions that work together.",
        ) from error


@cache
def _load(module: str) -> Any:
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice about GPUs and kernels that nothing here uses
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    finally:
        logging.disable(silenced)


@cache
def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is absent
        return False


@contextmanager
def _quiet() -> Generator[None]:
    """Divisions of zero rows by zero are the libraries' own business: the result is checked."""
    with np.errstate(all="ignore"):
        yield
