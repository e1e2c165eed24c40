"""The Triton kernels behind `triton.py`. All arithmetic in the dtype of the states; matrices' operands stay narrow.

T is walked in order (or backwards) inside a program, so a state depends on its past alone, bit for bit.
Rows of tensors along time are P wide, U of it real.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chain(a_left, b_left, a_right, b_right):
    """Two affine maps in a row: first the left one."""
    return a_left * a_right, a_right * b_left + b_right


@triton.jit
def activate_forward(x, sigma, mu, s, N, U, P, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    real = col < U
    sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
    inside = (n < N)[:, None] & real[None, :]
    value = tl.load(x + n.to(tl.int64)[:, None] * U + col[None, :], mask=inside, other=0.0).to(sig.dtype)
    out = tl.where(inside, tl.sigmoid(sig[None, :] * (value - mid[None, :])), 0.0)
    at = n.to(tl.int64)[:, None] * P + col[None, :]
    tl.store(s + at, out.to(s.dtype.element_ty), mask=(n < N)[:, None] & (col < P)[None, :])


@triton.jit
def activate_backward(
    x, sigma, mu, grad_s, grad_x, parts, N, U, P, ROUNDS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr
):
    """parts [programs, 2, U]: shares of the gradients in sigma and mu."""
    col = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    real = col < U
    sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
    in_sigma, in_mu = tl.zeros((BLOCK_N, BLOCK_U), sig.dtype), tl.zeros((BLOCK_N, BLOCK_U), sig.dtype)
    for i in range(ROUNDS):
        n = (tl.program_id(0) * ROUNDS + i) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (n < N)[:, None] & real[None, :]
        at = n.to(tl.int64)[:, None]
        value = tl.load(x + at * U + col[None, :], mask=inside, other=0.0).to(sig.dtype) - mid[None, :]
        out = tl.sigmoid(sig[None, :] * value)
        bell = tl.load(grad_s + at * P + col[None, :], mask=inside, other=0.0).to(sig.dtype) * out * (1 - out)
        in_sigma += bell * value
        in_mu -= bell * sig[None, :]
        tl.store(grad_x + at * U + col[None, :], (bell * sig[None, :]).to(grad_x.dtype.element_ty), mask=inside)
    part = parts + tl.program_id(0) * 2 * U + col
    tl.store(part, tl.sum(in_sigma, 0), mask=real)
    tl.store(part + U, tl.sum(in_mu, 0), mask=real)


@triton.jit
def leaky_forward(
    sums, c, pull, load, start, before, keep, sigma, mu, v, s, T, U, P,
    KEEP: tl.constexpr, NEXT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    step, real = tl.arange(0, BLOCK_T), col < U
    cap = tl.load(c + col, mask=real, other=0.0)
    n0, d0 = tl.load(pull + col, mask=real, other=0.0), tl.load(load + col, mask=real, other=1.0)
    carry = tl.load(before + b * U + col, mask=real, other=0.0)
    if KEEP:
        fresh = cap * tl.load(start + col, mask=real, other=0.0)
    if NEXT:
        sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
    for first in tl.range(0, T, BLOCK_T, num_stages=3):
        t = first + step
        inside = (t < T)[:, None] & real[None, :]
        row = (b * T + t)[:, None]
        at = row * (2 * P) + col[None, :]
        n = tl.load(sums + at, mask=inside, other=0.0).to(cap.dtype) + n0[None, :]
        d = tl.load(sums + at + P, mask=inside, other=0.0).to(cap.dtype) + d0[None, :]
        gate = cap[None, :] / d
        if KEEP:
            kept = (tl.load(keep + b * T + t, mask=t < T, other=1) != 0)[:, None]
            n = tl.where(kept, n, n + fresh[None, :])
            gate = tl.where(kept, gate, 0.0)
        decay, state = tl.associative_scan((gate, n / d), 0, chain)
        state += decay * carry[None, :]
        carry = tl.sum(tl.where((step == BLOCK_T - 1)[:, None], state, 0.0), 0)
        tl.store(v + row * P + col[None, :], state, mask=inside)
        if NEXT:
            out = tl.where(real[None, :], tl.sigmoid(sig[None, :] * (state - mid[None, :])), 0.0)
            wide = (t < T)[:, None] & (col < P)[None, :]
            tl.store(s + row * P + col[None, :], out.to(s.dtype.element_ty), mask=wide)


@triton.jit
def leaky_backward(
    sums, c, load, start, before, keep, sigma, mu, v, grad_v, grad_s, grad_sums, parts, T, U, P,
    KEEP: tl.constexpr, NEXT: tl.constexpr, OWN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """parts [B, 7, U]: shares of the gradients in c, pull, load, start, sigma, mu; last the one in `before`."""
    b = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    step, real = tl.arange(0, BLOCK_T), col < U
    cap, d0 = tl.load(c + col, mask=real, other=0.0), tl.load(load + col, mask=real, other=1.0)
    earliest = tl.load(before + b * U + col, mask=real, other=0.0)
    carry = tl.zeros((BLOCK_U,), cap.dtype)
    in_c, in_pull = tl.zeros((BLOCK_T, BLOCK_U), cap.dtype), tl.zeros((BLOCK_T, BLOCK_U), cap.dtype)
    in_load, in_before = tl.zeros((BLOCK_T, BLOCK_U), cap.dtype), tl.zeros((BLOCK_T, BLOCK_U), cap.dtype)
    if KEEP:
        fresh, in_start = tl.load(start + col, mask=real, other=0.0), tl.zeros((BLOCK_T, BLOCK_U), cap.dtype)
    if NEXT:
        sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
        in_sigma, in_mu = tl.zeros((BLOCK_T, BLOCK_U), cap.dtype), tl.zeros((BLOCK_T, BLOCK_U), cap.dtype)
    for first in tl.range(0, T, BLOCK_T):
        t = T - 1 - first - step
        inside = (t >= 0)[:, None] & real[None, :]
        later = ((t >= 0) & (t < T - 1))[:, None] & real[None, :]
        row = (b * T + t)[:, None]
        at, narrow = row * (2 * P) + P + col[None, :], row * P + col[None, :]
        d = tl.load(sums + at, mask=inside, other=0.0).to(cap.dtype) + d0[None, :]
        d_after = tl.load(sums + at + 2 * P, mask=later, other=0.0).to(cap.dtype) + d0[None, :]
        state = tl.load(v + narrow, mask=inside, other=0.0)
        past = tl.load(v + narrow - P, mask=inside & (t > 0)[:, None], other=0.0)
        past = tl.where((t == 0)[:, None], earliest[None, :], past)
        gate = tl.where(later, cap[None, :] / d_after, 0.0)
        if KEEP:
            kept = (tl.load(keep + b * T + t, mask=t >= 0, other=1) != 0)[:, None]
            after = tl.load(keep + b * T + t + 1, mask=(t >= 0) & (t < T - 1), other=0) != 0
            gate = tl.where(after[:, None], gate, 0.0)
            past = tl.where(kept, past, fresh[None, :])
        g = tl.zeros((BLOCK_T, BLOCK_U), cap.dtype)
        if OWN:
            g = tl.load(grad_v + narrow, mask=inside, other=0.0)
        if NEXT:
            out = tl.sigmoid(sig[None, :] * (state - mid[None, :]))
            bell = tl.load(grad_s + narrow, mask=inside, other=0.0).to(cap.dtype) * out * (1 - out)
            in_sigma += bell * (state - mid[None, :])
            in_mu -= bell * sig[None, :]
            g += bell * sig[None, :]
        decay, costate = tl.associative_scan((gate, g), 0, chain)
        costate += decay * carry[None, :]
        carry = tl.sum(tl.where((step == BLOCK_T - 1)[:, None], costate, 0.0), 0)
        y = tl.where(inside, costate / d, 0.0)
        y_den = -state * y
        in_c += past * y
        in_pull += y
        in_load += y_den
        back = cap[None, :] * y
        if KEEP:
            in_start += tl.where(kept, 0.0, back)
            back = tl.where(kept, back, 0.0)
        in_before += tl.where((t == 0)[:, None], back, 0.0)
        wide = (t >= 0)[:, None] & (col < P)[None, :]
        tl.store(grad_sums + at - P, y.to(grad_sums.dtype.element_ty), mask=wide)
        tl.store(grad_sums + at, y_den.to(grad_sums.dtype.element_ty), mask=wide)
    part = parts + b * 7 * U + col
    tl.store(part, tl.sum(in_c, 0), mask=real)
    tl.store(part + U, tl.sum(in_pull, 0), mask=real)
    tl.store(part + 2 * U, tl.sum(in_load, 0), mask=real)
    if KEEP:
        tl.store(part + 3 * U, tl.sum(in_start, 0), mask=real)
    if NEXT:
        tl.store(part + 4 * U, tl.sum(in_sigma, 0), mask=real)
        tl.store(part + 5 * U, tl.sum(in_mu, 0), mask=real)
    tl.store(part + 6 * U, tl.sum(in_before, 0), mask=real)


@triton.jit
def command_forward(
    sums, c, pull, load, start, before, keep, r_sigma, r_mu, fan, w_num, w_den, sigma, mu, v, denominators, s, post,
    T, U, P,
    KEEP: tl.constexpr, DEGREE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program walks a row through time; three steps ahead are on their way from memory.

    Neurons hear each other through `post` [B, 2, WIDTH]: written, a barrier, read; the two halves take turns, so that
    one barrier a step is enough. (Triton's own gather took six times as long.)
    """
    b = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, WIDTH)
    real = col < U
    cap = tl.load(c + col, mask=real, other=0.0)
    n0, d0 = tl.load(pull + col, mask=real, other=0.0), tl.load(load + col, mask=real, other=1.0)
    fresh = tl.load(start + col, mask=real, other=0.0)
    r_sig, r_mid = tl.load(r_sigma + col, mask=real, other=0.0), tl.load(r_mu + col, mask=real, other=0.0)
    sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
    slot = tl.arange(0, DEGREE)[:, None] * U + col[None, :]
    sources = tl.load(fan + slot, mask=real[None, :], other=0)
    weigh_num, weigh_den = (
        tl.load(w_num + slot, mask=real[None, :], other=0.0),
        tl.load(w_den + slot, mask=real[None, :], other=0.0),
    )
    state = tl.load(before + b * U + col, mask=real, other=0.0)
    row = sums + b * T * (2 * P) + col
    n1, m1 = tl.load(row, mask=real, other=0.0), tl.load(row + P, mask=real, other=0.0)
    two, three = real & (T > 1), real & (T > 2)
    n2, m2 = tl.load(row + 2 * P, mask=two, other=0.0), tl.load(row + 3 * P, mask=two, other=0.0)
    n3, m3 = tl.load(row + 4 * P, mask=three, other=0.0), tl.load(row + 5 * P, mask=three, other=0.0)
    for t in range(T):
        ahead = real & (t + 3 < T)
        next_row = row + (t + 3) * (2 * P)
        n4, m4 = tl.load(next_row, mask=ahead, other=0.0), tl.load(next_row + P, mask=ahead, other=0.0)
        if KEEP:
            state = tl.where(tl.load(keep + b * T + t) != 0, state, fresh)
        box = post + (b * 2 + t % 2) * WIDTH
        tl.store(box + col, tl.sigmoid(r_sig * (state - r_mid)))
        tl.debug_barrier()
        heard = tl.load(box + sources)
        d = m1.to(cap.dtype) + d0 + tl.sum(heard * weigh_den, 0)
        state = (cap * state + n1.to(cap.dtype) + n0 + tl.sum(heard * weigh_num, 0)) / d
        at = (b * T + t) * P + col
        tl.store(v + at, state, mask=real)
        tl.store(denominators + at, d, mask=real)
        out = tl.where(real, tl.sigmoid(sig * (state - mid)), 0.0)
        tl.store(s + at, out.to(s.dtype.element_ty), mask=col < P)
        n1, m1, n2, m2, n3, m3 = n2, m2, n3, m3, n4, m4


@triton.jit
def command_backward(
    c, start, before, keep, r_sigma, r_mu, fan, w_num, w_den, sigma, mu, v, denominators, grad_v, grad_s,
    grad_sums, spoken, parts, post, T, U, P,
    KEEP: tl.constexpr, OWN: tl.constexpr, DEGREE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """parts [B, 9, U]: c, pull, load, start, sigma, mu, r_sigma, r_mu, `before`; spoken: recurrent activations.

    post [B, 4, WIDTH]: as in `command_forward`, two quantities wide.
    """
    b = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, WIDTH)
    real = col < U
    cap, fresh = tl.load(c + col, mask=real, other=0.0), tl.load(start + col, mask=real, other=0.0)
    earliest = tl.load(before + b * U + col, mask=real, other=0.0)
    r_sig, r_mid = tl.load(r_sigma + col, mask=real, other=0.0), tl.load(r_mu + col, mask=real, other=0.0)
    sig, mid = tl.load(sigma + col, mask=real, other=0.0), tl.load(mu + col, mask=real, other=0.0)
    slot = tl.arange(0, DEGREE)[:, None] * U + col[None, :]
    targets = tl.load(fan + slot, mask=real[None, :], other=0)
    weigh_num, weigh_den = (
        tl.load(w_num + slot, mask=real[None, :], other=0.0),
        tl.load(w_den + slot, mask=real[None, :], other=0.0),
    )
    zero = tl.zeros((WIDTH,), cap.dtype)
    in_c, in_pull, in_load, in_start, in_sigma, in_mu, in_r_sigma, in_r_mu = (
        zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    back = zero
    row = b * T * P + col
    last = row + (T - 1) * P
    two, three = real & (T > 1), real & (T > 2)
    state = tl.load(v + last, mask=real, other=0.0)
    v1 = tl.load(v + last - P, mask=two, other=0.0)
    v2 = tl.load(v + last - 2 * P, mask=three, other=0.0)
    d1, g1 = tl.load(denominators + last, mask=real, other=1.0), tl.load(grad_s + last, mask=real, other=0.0)
    d2, g2 = tl.load(denominators + last - P, mask=two, other=1.0), tl.load(grad_s + last - P, mask=two, other=0.0)
    for i in range(T):
        t = T - 1 - i
        at = row + t * P
        v3 = tl.load(v + at - 3 * P, mask=real & (t > 2), other=0.0)
        ahead = real & (t > 1)
        d3, g3 = (
            tl.load(denominators + at - 2 * P, mask=ahead, other=1.0),
            tl.load(grad_s + at - 2 * P, mask=ahead, other=0.0),
        )
        out = tl.sigmoid(sig * (state - mid))
        bell = g1.to(cap.dtype) * out * (1 - out)
        in_sigma += bell * (state - mid)
        in_mu -= bell * sig
        g = bell * sig
        if OWN:
            g += tl.load(grad_v + at, mask=real, other=0.0)
        y = tl.where(real, (g + back) / d1, 0.0)
        y_den = -state * y
        tl.store(grad_sums + at + (b * T + t) * P, y.to(grad_sums.dtype.element_ty), mask=col < P)
        tl.store(grad_sums + at + (b * T + t) * P + P, y_den.to(grad_sums.dtype.element_ty), mask=col < P)
        before_it = tl.where(t > 0, v1, earliest)
        past = before_it
        if KEEP:
            kept = tl.load(keep + b * T + t) != 0
            past = tl.where(kept, before_it, fresh)
        said = tl.where(real, tl.sigmoid(r_sig * (past - r_mid)), 0.0)
        tl.store(spoken + at, said.to(spoken.dtype.element_ty), mask=col < P)
        box = post + (b * 4 + 2 * (i % 2)) * WIDTH
        tl.store(box + col, y)
        tl.store(box + WIDTH + col, y_den)
        tl.debug_barrier()
        heard_num, heard_den = tl.load(box + targets), tl.load(box + WIDTH + targets)
        pulled = tl.sum(heard_num * weigh_num + heard_den * weigh_den, 0)
        r_bell = pulled * said * (1 - said)
        in_r_sigma += r_bell * (past - r_mid)
        in_r_mu -= r_bell * r_sig
        in_c += past * y
        in_pull += y
        in_load += y_den
        back = cap * y + r_bell * r_sig
        if KEEP:
            in_start += tl.where(kept, 0.0, back)
            back = tl.where(kept, back, 0.0)
        state, v1, v2, d1, g1, d2, g2 = before_it, v2, v3, d2, g2, d3, g3
    part = parts + b * 9 * U + col
    tl.store(part, in_c, mask=real)
    tl.store(part + U, in_pull, mask=real)
    tl.store(part + 2 * U, in_load, mask=real)
    tl.store(part + 3 * U, in_start, mask=real)
    tl.store(part + 4 * U, in_sigma, mask=real)
    tl.store(part + 5 * U, in_mu, mask=real)
    tl.store(part + 6 * U, in_r_sigma, mask=real)
    tl.store(part + 7 * U, in_r_mu, mask=real)
    tl.store(part + 8 * U, back, mask=real)
