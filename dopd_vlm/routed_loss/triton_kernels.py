"""Triton kernels over rows of raw logits: statistics, folds for the top-K, gradients.

One program is one row, or one block of one row where nothing is summed. A raw logit z is what the head's
product gives; the kernels see x = cap tanh(scale (z + bias) / cap), made on load, so that no pass over V
applies bias, scale or cap. Probabilities are those of x / temperature.

`TRITON_INTERPRET=1`, set before Triton is imported, runs them on CPU tensors.
"""

import triton
import triton.language as tl

EXCLUDED = tl.constexpr(-3.4028234663852886e38)
"""Stands in a row for an entry that is left out; float32's lowest number, which no product gives."""
MAX_LOG_RATIO = tl.constexpr(80.0)


@triton.jit
def tanh(u):
    """tanh to a rounding; 1 - exp(-2u) alone loses the digits of a small u."""
    square = u * u
    small = u * (
        1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * 62 / 2835)))
    )
    decay = tl.exp(-2 * tl.abs(u))
    large = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(u) < 0.25, small, tl.where(u < 0, -large, large))


@triton.jit
def load_logits(
    row, bias, entries, inside, scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr
):
    """x of some entries of a row; -inf outside the row and where the entry is left out."""
    z = tl.load(row + entries, mask=inside, other=EXCLUDED).to(tl.float32)
    is_out = z == EXCLUDED
    x = tl.where(is_out, 0.0, z)
    if HAS_BIAS:
        x += tl.load(bias + entries, mask=inside, other=0.0).to(tl.float32)
    x *= scale
    if HAS_CAP:
        x = cap * tanh(x / cap)
    return tl.where(is_out, -float("inf"), x)


@triton.jit
def exp_below(x, shift):
    """exp(x - shift), 0 where x is -inf, whatever the shift."""
    return tl.where(x == -float("inf"), 0.0, tl.exp(x - shift))


@triton.jit
def stats_kernel(
    logits, row_stride, bias, log_sum, expected,
    scale, cap, inverse_temperature, width,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One read of a row: log sum exp(x / T) and sum p x / T, float64."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * row_stride
    greatest = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float64)
    weighted = tl.full((), 0.0, tl.float64)
    for start in range(0, width, BLOCK):
        entries = start + tl.arange(0, BLOCK)
        x = load_logits(row, bias, entries, entries < width, scale, cap, HAS_BIAS, HAS_CAP)
        x *= inverse_temperature
        higher = tl.maximum(greatest, tl.max(x, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = exp_below(greatest, shift).to(tl.float64)
        exponentials = exp_below(x, shift)
        products = tl.where(exponentials == 0.0, 0.0, exponentials * x)
        total = total * shrink + tl.sum(exponentials, 0).to(tl.float64)
        weighted = weighted * shrink + tl.sum(products, 0).to(tl.float64)
        greatest = higher
    is_empty = greatest == -float("inf")
    shift = tl.where(is_empty, 0.0, greatest).to(tl.float64)
    tl.store(log_sum + index, tl.log(total) + shift)
    tl.store(expected + index, tl.where(is_empty, 0.0, weighted / total))


@triton.jit
def key_of(x, entries):
    """int64 that orders by falling x, then by rising entry (below 2**31): the greatest key comes first."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - entries).to(tl.int64)


@triton.jit
def value_of(key):
    """The x that `key_of` was given."""
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def folds_kernel(
    logits, row_stride, bias, ids, log_sum, picked, keys, sums, fold_stride,
    scale, cap, inverse_temperature, width,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """One read of a row: log sum exp(x), x of the sampled id, and of each fold of FOLD entries the greatest
    x as a key and the sum of exp((x - greatest) / T)."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * row_stride
    greatest = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, width, BLOCK):
        entries = start + tl.arange(0, BLOCK)
        x = load_logits(row, bias, entries, entries < width, scale, cap, HAS_BIAS, HAS_CAP)
        higher = tl.maximum(greatest, tl.max(x, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = exp_below(greatest, shift).to(tl.float64)
        total = total * shrink + tl.sum(exp_below(x, shift), 0).to(tl.float64)
        greatest = higher
        folded = tl.reshape(x, (BLOCK // FOLD, FOLD))
        top = tl.max(folded, 1)
        at = start // FOLD + tl.arange(0, BLOCK // FOLD)
        base = tl.where(top == -float("inf"), 0.0, top)[:, None]
        own = tl.where(folded == -float("inf"), 0.0, tl.exp((folded - base) * inverse_temperature))
        is_there = at * FOLD < width
        tl.store(keys + index * fold_stride + at, key_of(top, at), mask=is_there)
        tl.store(sums + index * fold_stride + at, tl.sum(own, 1), mask=is_there)
    shift = tl.where(greatest == -float("inf"), 0.0, greatest).to(tl.float64)
    tl.store(log_sum + index, tl.log(total) + shift)
    sampled = tl.load(ids + index) + tl.arange(0, 1)
    x = load_logits(row, bias, sampled, sampled < width, scale, cap, HAS_BIAS, HAS_CAP)
    tl.store(picked + index + tl.arange(0, 1), x)


@triton.jit
def candidates_kernel(
    logits, row_stride, bias, fold_keys, sums, fold_stride, keys, num_folds,
    scale, cap, width,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Keys of all entries of the chosen folds, whose sums become 0: what is left of them is counted by entry."""
    index = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1)
    fold = 0x7FFFFFFF - (tl.load(fold_keys + index * num_folds + place) & 0x7FFFFFFF)
    entries = (fold * FOLD).to(tl.int32) + tl.arange(0, FOLD)
    row = logits + index * row_stride
    x = load_logits(row, bias, entries, entries < width, scale, cap, HAS_BIAS, HAS_CAP)
    out = keys + (index * num_folds + place) * FOLD + tl.arange(0, FOLD)
    tl.store(out, key_of(x, entries))
    tl.store(sums + index * fold_stride + fold, 0.0)


@triton.jit
def rest_kernel(
    keys, sums, fold_stride, candidates, num_candidates, last_key, log_rest,
    inverse_temperature, num_folds, BLOCK: tl.constexpr,
):  # fmt: skip
    """log sum exp(x / T) of all entries after `last_key`, float64: whole folds, and candidates that were not
    taken. Sums of the rest alone: 1 - mass would be noise where the support holds nearly everything."""
    index = tl.program_id(0).to(tl.int64)
    last = tl.load(last_key + index)
    shift = value_of(last) * inverse_temperature  # no entry of the rest is greater
    shift = tl.where(shift == -float("inf"), 0.0, shift)
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, num_folds, BLOCK):
        at = start + tl.arange(0, BLOCK)
        is_there = at < num_folds
        top = value_of(tl.load(keys + index * fold_stride + at, mask=is_there, other=0))
        own = tl.load(sums + index * fold_stride + at, mask=is_there, other=0.0)
        scaled = tl.where(own == 0.0, 0.0, own * exp_below(top * inverse_temperature, shift))
        total += tl.sum(scaled, 0).to(tl.float64)
    for start in range(0, num_candidates, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = tl.load(
            candidates + index * num_candidates + at, mask=at < num_candidates, other=last
        )
        x = tl.where(key < last, value_of(key), -float("inf")) * inverse_temperature
        total += tl.sum(exp_below(x, shift), 0).to(tl.float64)
    tl.store(log_rest + index, tl.log(total) + shift.to(tl.float64))


@triton.jit
def capped_slope(x, scale, cap, HAS_CAP: tl.constexpr):
    """d x / d z."""
    slope = scale
    if HAS_CAP:
        slope = scale * (1 - (x / cap) * (x / cap))
    return slope


@triton.jit
def outside_grad_kernel(
    logits, row_stride, bias, log_sum, factor, out, out_stride,
    scale, cap, inverse_temperature, width,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """factor p_v d x / d z, 0 at the entries that are left out."""
    index = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < width
    x = load_logits(
        logits + index * row_stride, bias, entries, inside, scale, cap, HAS_BIAS, HAS_CAP
    )
    p = exp_below(x * inverse_temperature, tl.load(log_sum + index).to(tl.float32))
    slope = tl.where(x == -float("inf"), 0.0, capped_slope(x, scale, cap, HAS_CAP))
    grad = p * tl.load(factor + index).to(tl.float32) * slope
    tl.store(out + index * out_stride + entries, grad.to(out.dtype.element_ty), mask=inside)


@triton.jit
def pair_of(
    row, bias, target_row, target_bias, entries, inside, log_sum, target_log_sum, offset,
    scale, cap, target_scale, target_cap, inverse_temperature,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    TARGET_HAS_BIAS: tl.constexpr, TARGET_HAS_CAP: tl.constexpr,
):  # fmt: skip
    """x, p, q and log q - log p of some entries; the last is 0 where both probabilities are 0."""
    x = load_logits(row, bias, entries, inside, scale, cap, HAS_BIAS, HAS_CAP)
    y = load_logits(
        target_row,
        target_bias,
        entries,
        inside,
        target_scale,
        target_cap,
        TARGET_HAS_BIAS,
        TARGET_HAS_CAP,
    )
    own, other = x * inverse_temperature, y * inverse_temperature
    nothing = (x == -float("inf")) & (y == -float("inf"))
    log_ratio = tl.where(nothing, 0.0, other - own + offset)
    return x, exp_below(own, log_sum), exp_below(other, target_log_sum), log_ratio


@triton.jit
def log_mixture(log_ratio, beta):
    """log M - log p = log(1 - beta + beta q / p)."""
    return tl.log(1 - beta + beta * tl.exp(log_ratio))


@triton.jit
def value_kernel(
    logits, row_stride, bias, targets, target_stride, target_bias, log_sum, target_log_sum,
    student_part, target_part,
    scale, cap, target_scale, target_cap, inverse_temperature, beta, width,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    TARGET_HAS_BIAS: tl.constexpr, TARGET_HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One read of both rows: the sum over p and the sum over q that make the divergence, float64.

    KIND 0 forward KL: (0, KL(q || p)). 1 reverse KL: (KL(p || q), 0). 2 JSD: (KL(p || M), KL(q || M)).
    """
    index = tl.program_id(0).to(tl.int64)
    own_sum, other_sum = tl.load(log_sum + index), tl.load(target_log_sum + index)
    offset = (own_sum - other_sum).to(tl.float32)
    over_p = tl.full((), 0.0, tl.float64)
    over_q = tl.full((), 0.0, tl.float64)
    for start in range(0, width, BLOCK):
        entries = start + tl.arange(0, BLOCK)
        _, p, q, log_ratio = pair_of(
            logits + index * row_stride, bias, targets + index * target_stride, target_bias,
            entries, entries < width, own_sum.to(tl.float32), other_sum.to(tl.float32), offset,
            scale, cap, target_scale, target_cap, inverse_temperature,
            HAS_BIAS, HAS_CAP, TARGET_HAS_BIAS, TARGET_HAS_CAP,
        )  # fmt: skip
        if KIND == 0:
            over_q += tl.sum(tl.where(q == 0.0, 0.0, q * log_ratio), 0).to(tl.float64)
        elif KIND == 1:
            over_p -= tl.sum(tl.where(p == 0.0, 0.0, p * log_ratio), 0).to(tl.float64)
        else:
            ratio = tl.minimum(tl.maximum(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
            cost = log_mixture(ratio, beta)
            over_p -= tl.sum(p * cost, 0).to(tl.float64)
            over_q += tl.sum(q * (ratio - cost), 0).to(tl.float64)
    tl.store(student_part + index, over_p)
    tl.store(target_part + index, over_q)


@triton.jit
def full_grad_kernel(
    logits, row_stride, bias, targets, target_stride, target_bias, log_sum, target_log_sum,
    student_part, out, out_stride,
    scale, cap, target_scale, target_cap, inverse_temperature, beta, width,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    TARGET_HAS_BIAS: tl.constexpr, TARGET_HAS_CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d divergence / d (x / T) times d x / d z. Forward KL: p - q. Reverse KL: p (log p - log q - KL).
    JSD: (1 - beta) p (log p - log M - KL(p || M))."""
    index = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < width
    own_sum, other_sum = tl.load(log_sum + index), tl.load(target_log_sum + index)
    x, p, q, log_ratio = pair_of(
        logits + index * row_stride, bias, targets + index * target_stride, target_bias,
        entries, inside, own_sum.to(tl.float32), other_sum.to(tl.float32),
        (own_sum - other_sum).to(tl.float32),
        scale, cap, target_scale, target_cap, inverse_temperature,
        HAS_BIAS, HAS_CAP, TARGET_HAS_BIAS, TARGET_HAS_CAP,
    )  # fmt: skip
    part = tl.load(student_part + index).to(tl.float32)
    if KIND == 0:
        grad = p - q
    elif KIND == 1:
        grad = tl.where(p == 0.0, 0.0, -p * (log_ratio + part))
    else:
        ratio = tl.minimum(tl.maximum(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
        grad = (beta - 1) * p * (log_mixture(ratio, beta) + part)
    slope = tl.where(x == -float("inf"), 0.0, capped_slope(x, scale, cap, HAS_CAP))
    tl.store(
        out + index * out_stride + entries, (grad * slope).to(out.dtype.element_ty), mask=inside
    )
