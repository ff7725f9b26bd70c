"""The kernels for NVIDIA cards, written in Triton: the only room that imports it.

`operations` holds what tensors on a card are given to, under the names of the torch reference;
`support` says what a card can do, and why not. Integers, and floats in a stated order, are the
reference's to the last bit; what is not (sums of products in float32) says so. Every kernel runs
under Triton's interpreter on a processor too, and is tested so. Tile sizes, warps and stages were
chosen without a card: they are not tuned.
"""
