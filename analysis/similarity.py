"""Linear CKA: how alike two representations of the same tokens are, whatever their widths, up to rotation and scale.

With X (n, dx) and Y (n, dy) centred over the tokens (Kornblith et al., 2019)

    CKA = ||X'Y||^2 / (||X'X|| ||Y'Y||)                                 Frobenius norms

which is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with the biased estimate of the Hilbert-Schmidt independence
criterion. With n not far above the width that is near 1 for anything, even noise; so the debiased CKA puts the
unbiased estimate of Song et al. (2012) in its place. From the n x n kernels K = XX' and L = YY' with zero diagonals

    HSIC = (tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1) / (n (n - 3)),

and because the rows of the full kernels sum to zero after centring, with a_i = |x_i|^2 and b_i = |y_i|^2

    tr(KL) = ||X'Y||^2 - sum a_i b_i        1'K1 = -sum a_i        1'KL1 = sum a_i b_i

so no n x n matrix is needed, only sums over tokens, which are kept in float64.

A representation that is the same vector at every token has no variance, and its CKA with anything is nan; so is the
debiased one where an estimate of HSIC(X, X) is not positive, which happens for a handful of tokens.
"""

import math

import torch

BLOCK = 2048  # tokens that are converted to float64 at once


class Moments:
    """CKA of two representations that are seen in blocks of tokens; keeps matrices of their widths only."""

    def __init__(self):
        self._shift = None  # the first block's mean: the sums cancel less from there than from zero
        self._first = None
        self._varies = [False, False]

    def update(self, x, y):
        """Add the same tokens of both: (tokens, dx) and (tokens, dy), any float dtypes and device."""
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"x and y must be (tokens, width) of the same tokens, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        both = [x.double(), y.double()]
        if self._shift is None:
            self._shift = [t.mean(0) for t in both]
            self._first = [t[0].clone() for t in both]
            self._sums = {"xy": _Sums(), "xx": _Sums(), "yy": _Sums()}
        for side, (t, first) in enumerate(zip(both, self._first, strict=True)):
            self._varies[side] |= bool((t != first).any())
        x, y = (t - shift for t, shift in zip(both, self._shift, strict=True))
        for name, sums in self._sums.items():
            sums.add(*({"x": x, "y": y}[side] for side in name))

    def cka(self):
        """The biased estimate, in [0, 1]."""
        return self._ratio(lambda sums: sums.centred()[0])

    def debiased_cka(self):
        """The debiased estimate, around 0 for unrelated representations. ValueError for fewer than 4 tokens."""
        return self._ratio(lambda sums: hsic(sums.n, *sums.centred()))

    def _ratio(self, criterion):
        if self._shift is None:
            raise ValueError("no tokens yet: call update first")
        found = {name: criterion(sums) for name, sums in self._sums.items()}
        return _ratio(found["xy"], found["xx"], found["yy"]) if all(self._varies) else math.nan


class _Sums:
    """Sums over tokens of what HSIC of one pair needs, and their values after centring."""

    def __init__(self):
        self.n = 0
        self.product = self.x = self.y = self.xb = self.ya = self.ab = self.a = self.b = 0.0

    def add(self, x, y):
        a, b = x.square().sum(1), y.square().sum(1)
        self.n += len(x)
        self.product = self.product + x.T @ y
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xb, self.ya = self.xb + b @ x, self.ya + a @ y
        self.ab, self.a, self.b = self.ab + a @ b, self.a + a.sum(), self.b + b.sum()

    def centred(self):
        """(||X'Y||^2, sum a b, sum a, sum b) of the centred representations."""
        mx, my = self.x / self.n, self.y / self.n
        mm, nn = mx @ mx, my @ my
        square = (self.product - self.n * torch.outer(mx, my)).square().sum()
        # |x - mx|^2 |y - my|^2 multiplied out
        ab = (
            self.ab - 2 * my @ self.ya - 2 * mx @ self.xb + 4 * mx @ self.product @ my
            + nn * self.a + mm * self.b - 3 * self.n * mm * nn
        )  # fmt: skip
        found = square, ab, self.a - self.n * mm, self.b - self.n * nn
        return tuple(t.item() for t in found)


def hsic(n, square, ab, a, b):
    """The unbiased HSIC of two linear kernels, of n centred tokens: ||X'Y||^2 and the sums of a_i b_i, a_i and b_i."""
    if n < 4:
        raise ValueError(f"the debiased estimate needs at least 4 tokens, got {n}")
    return (square - n / (n - 2) * ab + a * b / ((n - 1) * (n - 2))) / (n * (n - 3))


def _ratio(xy, xx, yy):
    return xy / (math.sqrt(xx) * math.sqrt(yy)) if xx > 0 and yy > 0 else math.nan


def cka_matrix(a, b, shuffles=3, seed=0):
    """Debiased CKA of every layer of one side with every layer of the other, and what chance gives.

    Args:
        a, b: {layer: (seqlen, width)}, the same tokens everywhere, any float dtypes and device.
        shuffles: how many permutations of the tokens of `b` chance is the mean of; nan for none. Their products are
            float32, which is far below what one permutation differs from the next.
        seed: of the permutations, which are the same for all pairs.

    Returns:
        (names of a, names of b, matrix, null): lists, and two (len(a), len(b)) float64 tensors on the CPU. nan in the
        row or column of a layer that is the same vector at every token.

    Raises:
        ValueError: layers of different lengths, or fewer than 4 tokens.
    """
    lengths = {len(t) for side in (a, b) for t in side.values()}
    if len(lengths) != 1:
        raise ValueError(f"all layers must have the same tokens, got lengths {sorted(lengths)}")
    rows, columns = ([_Layer(t) for t in side.values()] for side in (a, b))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(*lengths, generator=generator) for _ in range(shuffles)]
    matrix, null = torch.full((2, len(rows), len(columns)), math.nan, dtype=torch.float64)
    for j, y in enumerate(columns):
        shuffled = [y.permuted(order) for order in orders]
        for i, x in enumerate(rows):
            matrix[i, j] = x.cka(y, torch.float64)
            if shuffles:
                null[i, j] = sum(x.cka(t, torch.float32) for t in shuffled) / shuffles
    return list(a), list(b), matrix, null


class _Layer:
    """A representation (tokens, width), its mean, its centred squared norms and its HSIC with itself."""

    def __init__(self, tokens):
        self.tokens = tokens.detach()
        self.mean = tokens.mean(0, dtype=torch.float64)
        self.norms = torch.cat([t.square().sum(1) for t in self.blocks(torch.float64)])
        self.own = self.hsic(self, torch.float64)
        if bool((tokens == tokens[:1]).all()):
            self.own = 0.0  # not the rounding of the mean

    def permuted(self, order):
        """The same with its tokens in another order."""
        order = order.to(self.tokens.device)
        other = object.__new__(_Layer)
        other.tokens, other.norms = self.tokens[order], self.norms[order]
        other.mean, other.own = self.mean, self.own
        return other

    def blocks(self, dtype):
        """Its centred tokens, block by block."""
        return ((block.double() - self.mean).to(dtype) for block in self.tokens.split(BLOCK))

    def hsic(self, other, dtype):
        """Unbiased; products in `dtype`, sums over blocks in float64."""
        product = sum(
            (x.T @ y).double() for x, y in zip(self.blocks(dtype), other.blocks(dtype), strict=True)
        )
        sums = product.square().sum(), self.norms @ other.norms, self.norms.sum(), other.norms.sum()
        return hsic(len(self.norms), *(t.item() for t in sums))

    def cka(self, other, dtype):
        return _ratio(self.hsic(other, dtype), self.own, other.own)
