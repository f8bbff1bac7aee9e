/* Products of few rows with a matrix that is streamed from memory once, whatever the number of rows.

A weight is (n, k) row-major as nn.Linear has it. Each output is one chain of sums over k, the same for every number of
rows and threads. */
#ifndef SENSORIUM_LINEAR_H
#define SENSORIUM_LINEAR_H

#include "vector.h"

#define PAIR (2 * LANES) /* bfloat16 numbers in a vector */
#define ROWS 8           /* outputs that are computed in one pass over k */
#define FEW 4            /* input rows that share what was loaded of a weight */
#define AT_ONCE (LANES == 16 ? 4 : 2) /* outputs for them that registers hold */
#define AHEAD 512        /* bytes between what is asked for and what is used */

/* Bytes that a packed input row takes. */
INLINE size_t packed_bytes(int type, int k) {
    if (type == FLOAT32) return ((size_t)k + LANES - 1) / LANES * LANES * 4;
    return ((size_t)k + PAIR - 1) / PAIR * PAIR * 4; /* twice what vdpbf16ps needs: one formula for the caller */
}

/* x (k) as the product reads it. bfloat16 weights are read in pairs of one 32-bit lane, so their input is rounded and,
without an instruction that multiplies pairs, split into those of even and of odd places. Zeros fill the last vector. */
INLINE void pack(int type, const float *x, int k, void *packed) {
    if (type == FLOAT32) {
        float *out = packed;
        for (int i = 0; i < k; i += LANES) store(out + i, load_some(x + i, k - i));
        return;
    }
#if defined(__AVX512BF16__)
    uint16_t *out = packed;
    for (int i = 0; i < k; i += LANES) store_bf16_some(out + i, load_some(x + i, k - i), LANES);
    if ((k + LANES - 1) / LANES % 2) memset(out + (k + LANES - 1) / LANES * LANES, 0, 2 * LANES);
#else
    float *out = packed, plain[PAIR];
    for (int i = 0; i < k; i += PAIR) {
        store(plain, round_bf16(load_some(x + i, k - i)));
        store(plain + LANES, k - i > LANES ? round_bf16(load_some(x + i + LANES, k - i - LANES)) : all(0));
        for (int lane = 0; lane < LANES; lane++) {
            out[i + lane] = plain[2 * lane];
            out[i + LANES + lane] = plain[2 * lane + 1];
        }
    }
#endif
}

/* One vector of a weight times the same places of an input row, added to `sum`. */
INLINE vf times(int type, vf sum, const char *w, const char *x) {
    if (type == FLOAT32) return add_product(sum, load((const float *)w), load((const float *)x));
#if defined(__AVX512BF16__)
    __m512i a, b;
    memcpy(&a, w, 64);
    memcpy(&b, x, 64);
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    vu pair = *(const vu_loose *)w;
    sum = add_product(sum, (vf)(pair << 16), load((const float *)x));
    return add_product(sum, (vf)(pair & 0xffff0000u), load((const float *)x + LANES));
#endif
}

/* `outputs` <= ROWS times `rows` <= FEW sums side by side in registers. Outputs lie `wide` bytes apart in w and `skip`
numbers in y. `fetch`: nothing of w was read before. */
INLINE void tile(int type, const int outputs, const int rows, const int fetch, const char *w, size_t wide,
                 const char *x, size_t stride, int k, float *y, size_t skip, size_t ld) {
    const int step = type == FLOAT32 ? LANES : PAIR, bytes = 4 * LANES;
#if defined(__AVX512BF16__)
    const int taken = bytes;
#else
    const int taken = type == FLOAT32 ? bytes : 2 * bytes;
#endif
    vf sum[ROWS][FEW]; /* in registers, as all loops over it are unrolled */
    int at = 0;
    UNROLL for (int n = 0; n < outputs; n++) UNROLL for (int m = 0; m < rows; m++) sum[n][m] = all(0);
    for (; at + step <= k; at += step) {
        UNROLL for (int n = 0; n < outputs; n++) {
            if (fetch) __builtin_prefetch(w + n * wide + AHEAD);
            UNROLL for (int m = 0; m < rows; m++)
                sum[n][m] = times(type, sum[n][m], w + n * wide, x + m * stride);
        }
        w += bytes;
        x += taken;
    }
    if (at < k) {
        char last[4 * LANES] = {0};
        UNROLL for (int n = 0; n < outputs; n++) {
            memcpy(last, w + n * wide, (size_t)(k - at) * (type == FLOAT32 ? 4 : 2));
            UNROLL for (int m = 0; m < rows; m++) sum[n][m] = times(type, sum[n][m], last, x + m * stride);
        }
    }
    UNROLL for (int m = 0; m < rows; m++) {
        UNROLL for (int n = 0; n + 4 <= outputs; n += 4) {
            quad four = totals(sum[n][m], sum[n + 1][m], sum[n + 2][m], sum[n + 3][m]);
            UNROLL for (int one = 0; one < 4; one++) y[m * ld + (n + one) * skip] = four[one];
        }
        UNROLL for (int n = outputs / 4 * 4; n < outputs; n++) y[m * ld + n * skip] = total(sum[n][m]);
    }
}

/* `count` outputs, ROWS or one, for any number of rows: the first tiles bring the weights from memory, the others find
them near. */
INLINE void block(int type, const int count, const char *w, size_t wide, const char *x, size_t stride, int rows, int k,
                  float *y, size_t skip, size_t ld) {
    int m = 0;
#define TILES(OUTPUTS, TAKEN, FETCH)                                                                                   \
    for (int n = 0; n + OUTPUTS <= count; n += OUTPUTS)                                                                \
        tile(type, OUTPUTS, TAKEN, FETCH, w + n * wide, wide, x + m * stride, stride, k, y + m * ld + n * skip, skip,  \
             ld);
    if (rows >= FEW) {
        if (count == 1) TILES(1, FEW, 1) else TILES(AT_ONCE, FEW, 1)
        m = FEW;
    }
    for (; m + FEW <= rows; m += FEW) {
        if (count == 1) TILES(1, FEW, 0) else TILES(AT_ONCE, FEW, 0)
    }
    if (m + 2 <= rows) {
        if (count == 1) TILES(1, 2, 1) else TILES(4, 2, 1)
        m += 2;
    }
    if (m < rows) {
        if (count == 1) TILES(1, 1, 1) else TILES(ROWS, 1, 1)
    }
#undef TILES
}

/* The ROWS outputs of a block lie far apart, each the next one of its own run of neighbours: so many streams through
memory, each in order, are read nearly twice as fast as one. */
INLINE void typed_rows(int type, const char *w, int k, const char *x, size_t stride, int rows, int n0, int n1, float *y,
                       size_t ld) {
    const size_t wide = (size_t)k * (type == FLOAT32 ? 4 : 2), run = (size_t)(n1 - n0) / ROWS;
    w += (size_t)n0 * wide;
    y += n0;
    for (size_t n = 0; n < run; n++)
        block(type, ROWS, w + n * wide, run * wide, x, stride, rows, k, y + n, run, ld);
    for (size_t n = run * ROWS; n < (size_t)(n1 - n0); n++)
        block(type, 1, w + n * wide, 0, x, stride, rows, k, y + n, 0, ld);
}

/* Outputs n0..n1 of each packed row: y[i * ld + n]. */
static void float32_rows(const char *w, int k, const char *x, size_t stride, int rows, int n0, int n1, float *y,
                         size_t ld) {
    typed_rows(FLOAT32, w, k, x, stride, rows, n0, n1, y, ld);
}
static void bfloat16_rows(const char *w, int k, const char *x, size_t stride, int rows, int n0, int n1, float *y,
                          size_t ld) {
    typed_rows(BFLOAT16, w, k, x, stride, rows, n0, n1, y, ld);
}

#endif
