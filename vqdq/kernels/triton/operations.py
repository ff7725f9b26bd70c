"""What a tensor on a card is given to, by the names of the torch reference."""

from __future__ import annotations

from vqdq.kernels.triton.codes import line_extremes as line_extremes
from vqdq.kernels.triton.codes import own_codes as own_codes
from vqdq.kernels.triton.codes import row_codes as row_codes
from vqdq.kernels.triton.decoding import additive_decode as additive_decode
from vqdq.kernels.triton.decoding import additive_decode_rotated as additive_decode_rotated
from vqdq.kernels.triton.decoding import trellis_decode as trellis_decode
from vqdq.kernels.triton.decoding import trellis_weight as trellis_weight
from vqdq.kernels.triton.plain import feed_forward as feed_forward
from vqdq.kernels.triton.plain import hadamard as hadamard
from vqdq.kernels.triton.plain import unpack_bits as unpack_bits
from vqdq.kernels.triton.searching import additive_encode as additive_encode
from vqdq.kernels.triton.searching import additive_feedback as additive_feedback
from vqdq.kernels.triton.searching import trellis_encode as trellis_encode
from vqdq.kernels.triton.searching import trellis_feedback as trellis_feedback
