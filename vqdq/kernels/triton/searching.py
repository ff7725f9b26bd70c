"""The encoders on the card: Viterbi for the trellis, beam search for sums of codewords.

One block of threads a sequence (or a vector), as many blocks as the card holds, each taking the
next one when it is done. Costs are whole numbers, so what is found is what the processor finds, to
the last tie: the same bytes from the same seed. Costs lie in two rows of global memory that stay in
the first cache; a barrier stands between writing and reading them.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from vqdq.kernels import trellis_reference
from vqdq.kernels.trellis_reference import LARGEST_TARGET, SHORT_PASSES, SHORT_ROWS
from vqdq.kernels.triton.decoding import trellis_decode
from vqdq.kernels.triton.plain import feed_forward
from vqdq.packing import packed_bytes

_STATES = 4096  # settled at once; not tuned
_BLOCK = 128  # columns between two rounds of feeding forward, as on a processor


@triton.jit
def _settle(
    targets,
    table,
    cost,
    decisions,
    rows,
    first,
    steps,
    BITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Runs `steps` rows from row `first` on, round the circle of `rows`, and leaves what was chosen
    in `decisions`; the final costs are in row steps % 2 of `cost`.

    Costs are kept relative to the first of the row before, and compared with the choice in their
    low bits, so that the smaller choice wins a tie.
    """
    choice = tl.arange(0, 1 << BITS)
    for step in range(steps):
        x = tl.load(targets + (first + step) % rows).to(tl.int32)
        old = cost + (step % 2) * OVERLAPS
        new = cost + ((step + 1) % 2) * OVERLAPS
        base = tl.load(old)
        for part in range(OVERLAPS // CHUNK):
            overlap = part * CHUNK + tl.arange(0, CHUNK)
            state = (overlap << BITS)[:, None] + choice[None, :]
            value = tl.load(table + state).to(tl.int32)
            before = tl.load(old + (state & (OVERLAPS - 1))) - base
            total = before + 8 * value * value - 2 * x * value
            best = tl.min((total << BITS) + choice[None, :], axis=1)
            tl.store(new + overlap, best >> BITS)
            picked = best & ((1 << BITS) - 1)
            if HALVES:
                low, high = tl.split(tl.reshape(picked, (CHUNK // 2, 2)))
                half = part * (CHUNK // 2) + tl.arange(0, CHUNK // 2)
                both = (low | (high << 4)).to(tl.uint8)
                tl.store(decisions + step * (OVERLAPS // 2) + half, both)
            else:
                at = decisions + step * OVERLAPS + overlap
                tl.store(at, picked.to(tl.uint8))
        tl.debug_barrier()


@triton.jit
def _chosen(decisions, step, seam, OVERLAPS: tl.constexpr, HALVES: tl.constexpr):
    """Returns what was chosen on the way to an overlap."""
    if HALVES:
        both = tl.load(decisions + step * (OVERLAPS // 2) + (seam >> 1)).to(tl.int32)
        picked = (both >> ((seam & 1) * 4)) & 15
    else:
        picked = tl.load(decisions + step * OVERLAPS + seam).to(tl.int32)
    return picked


@triton.jit
def _viterbi_kernel(
    targets,
    table,
    costs,
    decisions,
    paths,
    codes,
    rows,
    columns,
    segments,
    stream,
    room,
    far,
    turns,
    BITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    SIDE: tl.constexpr,
    LONGEST: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Writes the stream of one column and segment after another, codes uint8 [columns, stream].

    targets int16 [columns, rows], clamped; costs int32 [programs, 2, overlaps]; decisions uint8
    [programs, room]; paths uint8 [programs, LONGEST]. In a last turn that is not full, blocks
    repeat the last sequence.
    """
    program = tl.program_id(0).to(tl.int64)
    cost, chosen = costs + program * (2 * OVERLAPS), decisions + program * room
    path = paths + program * LONGEST
    for turn in range(turns):
        sequence = tl.minimum(program + turn * tl.num_programs(0), columns * segments - 1)
        column, segment = sequence // segments, sequence % segments
        start = segment * 256
        long = tl.where(segment == segments - 1, rows - start, 256)
        x = targets + column * rows + start
        for part in range(OVERLAPS // CHUNK):  # free at the start
            overlap = part * CHUNK + tl.arange(0, CHUNK)
            tl.store(cost + overlap, tl.zeros((CHUNK,), tl.int32))
        tl.debug_barrier()
        begin = (long - SIDE % long) % long
        _settle(x, table, cost, chosen, long, begin, 2 * SIDE, BITS, OVERLAPS, CHUNK, HALVES)
        least, seam = 2147483647, 0
        for part in range(OVERLAPS // CHUNK):
            overlap = part * CHUNK + tl.arange(0, CHUNK)
            found = tl.load(cost + overlap)  # 2 * SIDE is even
            smallest = tl.min(found, axis=0)
            place = tl.min(tl.where(found == smallest, overlap, OVERLAPS), axis=0)
            seam = tl.where(smallest < least, place, seam)
            least = tl.minimum(least, smallest)
        for back in range(SIDE):
            picked = _chosen(chosen, 2 * SIDE - 1 - back, seam, OVERLAPS, HALVES)
            seam = ((seam << BITS) | picked) & (OVERLAPS - 1)
        tl.debug_barrier()
        for part in range(OVERLAPS // CHUNK):  # held to the seam
            overlap = part * CHUNK + tl.arange(0, CHUNK)
            tl.store(cost + overlap, tl.where(overlap == seam, 0, far))
        tl.debug_barrier()
        _settle(x, table, cost, chosen, long, 0, long, BITS, OVERLAPS, CHUNK, HALVES)
        for back in range(long):
            picked = _chosen(chosen, long - 1 - back, seam, OVERLAPS, HALVES)
            tl.store(path + long - 1 - back, picked.to(tl.uint8))
            seam = ((seam << BITS) | picked) & (OVERLAPS - 1)
        tl.debug_barrier()
        size = (long * BITS + 7) // 8
        out = codes + column * stream + segment * (32 * BITS)
        for first in range(0, size, 128):
            byte = first + tl.arange(0, 128)
            value = tl.zeros((128,), tl.int32)
            for bit in tl.static_range(8):
                place = byte * 8 + bit
                row = place // BITS
                picked = tl.load(path + row, mask=row < long, other=0).to(tl.int32)
                value |= ((picked >> (place % BITS)) & 1) << bit
            tl.store(out + byte, value.to(tl.uint8), mask=byte < size)
        tl.debug_barrier()


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_encode`. Equal layers are batched by laying their columns side by
    side; sequences so short that every seam is tried stay on the processor.
    """
    rows, columns = targets.shape
    overlaps = len(table) >> bits
    if rows < SHORT_ROWS and rows * overlaps <= SHORT_PASSES:
        from vqdq.kernels import trellis

        return trellis.trellis_encode(targets.cpu(), table.cpu(), bits).to(targets.device)
    segments, device = max(1, rows // 256), targets.device
    longest = rows - 256 * (segments - 1)
    side, halves = trellis_reference.seam_rows(bits), bits <= 4
    chunk = min(overlaps, max(16, _STATES >> bits))
    room = max(longest, 2 * side) * overlaps // (2 if halves else 1)
    programs = min(columns * segments, _programs(device, room))
    wanted = targets.to(torch.int16).clamp(-LARGEST_TARGET, LARGEST_TARGET).T.contiguous()
    stream = packed_bytes(rows, bits)
    codes = torch.empty(columns, stream, dtype=torch.uint8, device=device)
    costs = torch.empty(programs, 2, overlaps, dtype=torch.int32, device=device)
    decisions = torch.empty(programs, room, dtype=torch.uint8, device=device)
    paths = torch.empty(programs, longest, dtype=torch.uint8, device=device)
    _viterbi_kernel[(programs,)](
        wanted, table.contiguous(), costs, decisions, paths, codes, rows, columns, segments, stream,
        room, (1 << 30) >> bits, triton.cdiv(columns * segments, programs), BITS=bits,
        OVERLAPS=overlaps, CHUNK=chunk, SIDE=side, LONGEST=longest, HALVES=halves, num_warps=4,
    )  # fmt: skip
    return codes.T.contiguous()


def _programs(device: torch.device, room: int) -> int:
    """Returns how many blocks run at once: four a multiprocessor, 2 GB of decisions at most."""
    if device.type != "cuda":
        return 2
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(4 * count, (2 << 30) // room))


def trellis_feedback(
    weight: torch.Tensor,
    scales: torch.Tensor,
    unit: torch.Tensor,
    table: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_feedback`: column after column, all segments of it in all layers
    at once.
    """
    if weight.ndim == 2:
        return trellis_feedback(weight[None], scales[None], unit[None], table, bits)[0]
    layers, rows, columns = weight.shape
    source, sizes = weight.float().mT.contiguous(), scales.float()  # [layers, columns, rows]
    targets, errors, shares = source.clone(), torch.empty_like(source), unit.float()
    zero = torch.zeros((), device=weight.device)
    per_unit = torch.where(sizes > 0, trellis_reference.COST_UNITS / sizes, zero)
    limit, codes = float(LARGEST_TARGET), list[torch.Tensor]()
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        for layer in range(layers if begin else 0):
            block, share = targets[layer, begin:end], shares[layer, :begin, begin:end]
            targets[layer, begin:end] = feed_forward(block, errors[layer, :begin], share)
        for column in range(begin, end):
            wanted = (targets[:, column] * per_unit).round().nan_to_num().clamp(-limit, limit)
            code = trellis_encode(wanted.to(torch.int16).T.contiguous(), table, bits)
            levels = trellis_decode(code, table, bits, rows).T  # [layers, rows]
            # a product and a sum apart: a card would fuse what one expression joins
            errors[:, column] = source[:, column] - levels.float().mul_(sizes)
            share = shares[:, column, column + 1 : end, None]
            later = share * errors[:, None, column]  # [layers, columns to come, rows]
            targets[:, column + 1 : end] += later
            codes.append(code)
    return torch.stack(codes, dim=2).transpose(0, 1)  # [layers, bytes, columns]


@triton.jit
def _beam_kernel(
    vectors,
    books,
    powers,
    sums,
    costs,
    history,
    codes,
    count,
    turns,
    BOOKS: tl.constexpr,
    WORDS: tl.constexpr,
    DIM: tl.constexpr,
    BEAM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes the codes uint8 [count, BOOKS] of one vector after another.

    vectors int16 [count, DIM]; books int16 [BOOKS, WORDS, DIM]; powers int32 [BOOKS, WORDS]; sums
    int32 [programs, 2, WIDTH, DIM]; costs int32 [programs, 2, WIDTH]; history uint8 [programs, 2,
    WIDTH, BOOKS]; WIDTH is BEAM up to a power of two.
    """
    program = tl.program_id(0).to(tl.int64)
    total, paid = sums + program * (2 * WIDTH * DIM), costs + program * (2 * WIDTH)
    past = history + program * (2 * WIDTH * BOOKS)
    slot, word, axis = tl.arange(0, WIDTH), tl.arange(0, WORDS), tl.arange(0, DIM)
    book_axis = tl.arange(0, 4)
    for turn in range(turns):
        vector = tl.minimum(program + turn * tl.num_programs(0), count - 1)
        x = vectors + vector * DIM
        start = tl.load(x + axis).to(tl.int32)
        at = slot[:, None] * DIM + axis[None, :]
        tl.store(total + at, tl.zeros((WIDTH, DIM), tl.int32) - start[None, :])
        tl.store(paid + slot, tl.where(slot == 0, 0, 1073741824))
        tl.debug_barrier()
        for book in tl.static_range(BOOKS):
            old, new = (book % 2) * WIDTH, ((book + 1) % 2) * WIDTH
            cost = tl.load(paid + old + slot)
            cross = tl.zeros((WIDTH, WORDS), tl.int32)
            for d in tl.static_range(DIM):
                left = tl.load(total + (old + slot) * DIM + d)
                near = tl.load(books + (book * WORDS + word) * DIM + d).to(tl.int32)
                cross += left[:, None] * near[None, :]
            grown = cost[:, None] + 2 * cross + tl.load(powers + book * WORDS + word)[None, :]
            valid = (cost < 1073741824)[:, None]
            name = slot[:, None] * WORDS + word[None, :]
            key = tl.where(valid, (grown.to(tl.int64) << 13) + name, 1 << 62)
            for kept in range(BEAM if book < BOOKS - 1 else 1):
                best = tl.min(tl.min(key, axis=1), axis=0)
                key = tl.where(key == best, 1 << 62, key)
                chosen = (best & 8191).to(tl.int32)
                parent, code = chosen // WORDS, chosen % WORDS
                moved = tl.load(total + (old + parent) * DIM + axis)
                moved += tl.load(books + (book * WORDS + code) * DIM + axis).to(tl.int32)
                tl.store(total + (new + kept) * DIM + axis, moved)
                none = best == (1 << 62)
                tl.store(paid + new + kept, tl.where(none, 1073741824, (best >> 13).to(tl.int32)))
                held = book_axis < BOOKS
                before = tl.load(past + (old + parent) * BOOKS + book_axis, mask=held, other=0)
                after = tl.where(book_axis == book, code.to(tl.uint8), before)
                tl.store(past + (new + kept) * BOOKS + book_axis, after, mask=held)
            if BEAM < WIDTH:
                tl.store(paid + new + slot, 1073741824, mask=slot >= BEAM)
            tl.debug_barrier()
        held = book_axis < BOOKS
        final = past + (BOOKS % 2) * WIDTH * BOOKS
        found = tl.load(final + book_axis, mask=held, other=0)
        tl.store(codes + vector * BOOKS + book_axis, found, mask=held)
        tl.debug_barrier()


def additive_encode(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    """See `vqdq.kernels.additive_encode`."""
    device, (books, words, dim) = vectors.device, codebooks.shape
    wanted = vectors.to(torch.int16).contiguous()
    held = codebooks.to(torch.int16).contiguous()
    powers = held.int().square().sum(2, dtype=torch.int32).contiguous()
    codes = torch.empty(len(wanted), books, dtype=torch.uint8, device=device)
    width = max(2, triton.next_power_of_2(beam))
    programs = min(len(wanted), _programs(device, 1))
    if not programs:
        return codes
    _beam_kernel[(programs,)](
        wanted, held, powers,
        torch.empty(programs, 2, width, dim, dtype=torch.int32, device=device),
        torch.empty(programs, 2, width, dtype=torch.int32, device=device),
        torch.zeros(programs, 2, width, books, dtype=torch.uint8, device=device),
        codes, len(wanted), triton.cdiv(len(wanted), programs),
        BOOKS=books, WORDS=words, DIM=dim, BEAM=beam, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return codes


def additive_feedback(
    weight: torch.Tensor,
    unit: torch.Tensor,
    metric: torch.Tensor,
    codebooks: torch.Tensor,
    seen: torch.Tensor,
    beam: int,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_feedback`: group after group, all rows of one at once."""
    dim, columns = codebooks.shape[2], weight.shape[1]
    source, shares = weight.float().T.contiguous(), unit.float()
    targets, errors, books = source.clone(), torch.empty_like(source), codebooks.int()
    codes: list[torch.Tensor] = []
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        if begin:
            fed = feed_forward(targets[begin:end], errors[:begin], shares[:begin, begin:end])
            targets[begin:end] = fed
        for start in range(begin, end, dim):
            group, stop = start // dim, start + dim
            turned = torch.zeros_like(source[start:stop])
            for index in range(dim):  # products and sums apart, in the order of the columns
                turned += targets[start + index] * metric[group, index, :, None]
            rounded = turned.round().clamp(-768, 768).to(torch.int16)
            code = additive_encode(rounded.T, seen[group], beam)
            decoded = books[0][code[:, 0].long()]
            for book in range(1, len(books)):
                decoded = decoded + books[book][code[:, book].long()]
            errors[start:stop] = source[start:stop] - decoded.T
            for index in range(start, stop):
                targets[stop:end] += shares[index, stop:end, None] * errors[index]
            codes.append(code)
    return torch.stack(codes, dim=1).reshape(-1, len(books))
