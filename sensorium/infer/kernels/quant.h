/* Products of float rows with weights of 8 or 4 bits: y[i][n] = sum over k of x[i][k] * w[n][k].

   Codes lie in panels of 16 outputs, in a panel in groups of 32 inputs, in a group input pair by input pair, so that one
   vector holds the same two inputs of all outputs of a panel: whatever is streamed is streamed once, in order, and no
   sum crosses lanes. Outputs beyond n and inputs beyond k are codes of zeros.

     8 bits  int8 codes[panel][group][16 pairs][16 outputs][2], half scales[panel][group][16]: w = scale * code
     4 bits  uint16 codes[panel][group][4][16 outputs][2], of which nibble s (lowest first) of vector v is pair 4 v + s;
             half scales[panel][group][2][16], a scale and a least: w = scale * code + least, code 0 to 15

   A row of inputs is rounded to int16 with a scale for every group (relative error 2^-16 of a group's largest, less than
   bfloat16's), so products and their sums within a group are exact in int32; groups are added in float32 in their order.
   Neither the number of rows nor the range of outputs of a call changes what a row gives.

   struct quant, and for q8 and q4 alike: NAME_input_bytes(k) of scratch (of 64-byte alignment) hold one row for
   NAME_input, made once; NAME_rows then gives outputs n0 to n1 of m rows; ranges that begin at multiples of 16 waste
   nothing. NAME_values gives the weights of a group. */

#ifndef SENSORIUM_QUANT_H
#define SENSORIUM_QUANT_H

#include "quant_vector.h"

#include <stddef.h>

struct quant {
    const void *codes;
    const void *scales;
    int n, k; /* outputs, inputs */
};

enum { QUANT_PANEL = 16, QUANT_GROUP = 32, QUANT_PAIRS = 16 };

static inline int quant_groups(int k) { return (k + QUANT_GROUP - 1) / QUANT_GROUP; }

enum { QUANT_PARTS = QUANT_PANEL / QUANT_LANES };
enum { QUANT_SIDE = 4, QUANT_AHEAD = 512 }; /* panels side by side at most; bytes that are asked for ahead */

/* ---- inputs: int16[32 groups], float scales[groups], float sums[groups] (of a group's rounded inputs) */

static size_t quant_input_bytes(int k) {
    const size_t groups = (size_t)quant_groups(k);
    return (groups * (QUANT_GROUP * sizeof(int16_t) + 2 * sizeof(float)) + 63) & ~(size_t)63;
}

QUANT_INLINE const float *quant_scales_of(const void *input, int groups) {
    return (const float *)((const int16_t *)input + (size_t)groups * QUANT_GROUP);
}

/* 32 inputs to int16 by 1 / scale, to the nearest, even where two are; their sum */
static inline int32_t quant_group(const float *x, float inverse, int16_t *out) {
#if defined(__AVX2__) && !defined(QUANT_PLAIN)
    const __m256 by = _mm256_set1_ps(inverse);
    __m256i sum = _mm256_setzero_si256();
    for (int at = 0; at < QUANT_GROUP; at += 16) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at), by));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at + 8), by));
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        _mm256_storeu_si256((__m256i *)(out + at), both);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
    }
    int32_t lanes[8], total = 0;
    _mm256_storeu_si256((__m256i *)lanes, sum);
    for (int lane = 0; lane < 8; lane++) total += lanes[lane];
    return total;
#else
    int32_t total = 0;
    for (int at = 0; at < QUANT_GROUP; at++) {
        const float rounded = rintf(x[at] * inverse);
        out[at] = (int16_t)(rounded > 32767.0f ? 32767.0f : rounded < -32768.0f ? -32768.0f : rounded);
        total += out[at];
    }
    return total;
#endif
}

static void quant_input(const float *x, int k, void *out) {
    const int groups = quant_groups(k);
    int16_t *codes = (int16_t *)out;
    float *scales = (float *)(codes + (size_t)groups * QUANT_GROUP), *sums = scales + groups;
    for (int g = 0; g < groups; g++) {
        const float *from = x + g * QUANT_GROUP;
        float padded[QUANT_GROUP];
        const int rest = k - g * QUANT_GROUP;
        if (rest < QUANT_GROUP) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, from, (size_t)rest * sizeof(float));
            from = padded;
        }
        float tops[8] = {0}, nothing[8] = {0}, top = 0, lost = 0;
        for (int at = 0; at < QUANT_GROUP; at += 8)
            for (int lane = 0; lane < 8; lane++) {
                const float size = fabsf(from[at + lane]);
                tops[lane] = size > tops[lane] ? size : tops[lane];
                nothing[lane] += 0.0f * from[at + lane];
            }
        for (int lane = 0; lane < 8; lane++) top = tops[lane] > top ? tops[lane] : top, lost += nothing[lane];
        const float scale = top / 32767.0f + lost; /* no number where an input is none, or infinite */
        const int32_t sum = quant_group(from, top > 0x1p-100f ? 32767.0f / top : 0.0f, codes + g * QUANT_GROUP);
        scales[g] = scale;
        sums[g] = scale * (float)sum;
    }
}

/* ---- products: `count` rows with `side` panels of codes, of which each begins `apart` groups behind the one before:
   so many streams through memory, each in order, are read faster than one. y[panel][row][output]; sums of all outputs in
   their order. */

typedef quant_floats quant_totals[QUANT_SIDE][QUANT_MOST][QUANT_PARTS];
typedef quant_ints quant_sums[QUANT_SIDE][QUANT_MOST][QUANT_PARTS];

#define QUANT_EACH_SUM                                                                                                 \
    for (int s = 0; s < side; s++)                                                                                     \
        for (int i = 0; i < count; i++)                                                                                \
            for (int part = 0; part < QUANT_PARTS; part++)
QUANT_INLINE void quant_begin(const int count, const int side, quant_totals total) {
    QUANT_EACH_SUM total[s][i][part] = quant_none();
}
QUANT_INLINE void quant_clear(const int count, const int side, quant_sums sum) {
    QUANT_EACH_SUM sum[s][i][part] = quant_zeros();
}
QUANT_INLINE void quant_put(const int count, const int side, quant_totals total, float *y) {
    QUANT_EACH_SUM quant_store(y + (s * count + i) * QUANT_PANEL + QUANT_LANES * part, total[s][i][part]);
}
#undef QUANT_EACH_SUM

QUANT_INLINE void q8_pair(const int count, const int side, const int fetch, const int8_t *codes, size_t apart, int pair,
                          const char *x, size_t stride, quant_sums sum) {
#pragma GCC unroll 4
    for (int s = 0; s < side; s++) {
        const int8_t *from = codes + s * apart * QUANT_GROUP * QUANT_PANEL + 2 * QUANT_PANEL * pair;
        if (fetch && pair % 2 == 0) __builtin_prefetch(from + QUANT_AHEAD);
        quant_ints w[QUANT_PARTS];
        for (int part = 0; part < QUANT_PARTS; part++) w[part] = quant_widen(from + 2 * QUANT_LANES * part);
        for (int i = 0; i < count; i++) {
            const quant_ints both = quant_pair((const int16_t *)(x + i * stride) + 2 * pair);
            for (int part = 0; part < QUANT_PARTS; part++) sum[s][i][part] = quant_dot(sum[s][i][part], w[part], both);
        }
    }
}

QUANT_INLINE void q8_panels(const int count, const int side, const int fetch, const int8_t *codes,
                            const uint16_t *scales, size_t apart, const char *x, size_t stride, int groups, float *y) {
    quant_totals total;
    quant_begin(count, side, total);
    for (int g = 0; g < groups; g++) {
        quant_sums sum;
        quant_clear(count, side, sum);
        if (count == QUANT_MOST) { /* so many sums stay in registers only where no loop is left */
#pragma GCC unroll 16
            for (int pair = 0; pair < QUANT_PAIRS; pair++)
                q8_pair(count, side, fetch, codes, apart, pair, x + 2 * g * QUANT_GROUP, stride, sum);
        } else {
#pragma GCC unroll 4
            for (int pair = 0; pair < QUANT_PAIRS; pair++)
                q8_pair(count, side, fetch, codes, apart, pair, x + 2 * g * QUANT_GROUP, stride, sum);
        }
        for (int s = 0; s < side; s++)
            for (int part = 0; part < QUANT_PARTS; part++) {
                const quant_floats scale = quant_halves(scales + s * apart * QUANT_PANEL + QUANT_LANES * part);
                for (int i = 0; i < count; i++) {
                    const quant_floats own = quant_times(scale, quant_scales_of(x + i * stride, groups)[g]);
                    total[s][i][part] = quant_fma(own, quant_float(sum[s][i][part]), total[s][i][part]);
                }
            }
        codes += QUANT_GROUP * QUANT_PANEL;
        scales += QUANT_PANEL;
    }
    quant_put(count, side, total, y);
}

QUANT_INLINE void q4_panels(const int count, const int side, const int fetch, const uint16_t *codes,
                            const uint16_t *scales, size_t apart, const char *x, size_t stride, int groups, float *y) {
    quant_totals total;
    quant_begin(count, side, total);
    for (int g = 0; g < groups; g++) {
        quant_sums sum;
        quant_clear(count, side, sum);
#pragma GCC unroll 4
        for (int vector = 0; vector < 4; vector++) {
#pragma GCC unroll 4
            for (int s = 0; s < side; s++) {
                const uint16_t *from = codes + s * apart * QUANT_GROUP * QUANT_PANEL / 4 + 2 * QUANT_PANEL * vector;
                if (fetch) __builtin_prefetch((const char *)from + QUANT_AHEAD);
                quant_ints w[QUANT_PARTS];
                for (int part = 0; part < QUANT_PARTS; part++) w[part] = quant_load(from + 2 * QUANT_LANES * part);
#pragma GCC unroll 4
                for (int nibble = 0; nibble < 4; nibble++) {
                    quant_ints own[QUANT_PARTS];
                    for (int part = 0; part < QUANT_PARTS; part++) own[part] = quant_nibble(w[part], nibble);
                    for (int i = 0; i < count; i++) {
                        const int16_t *row = (const int16_t *)(x + i * stride) + g * QUANT_GROUP;
                        const quant_ints both = quant_pair(row + 8 * vector + 2 * nibble);
                        for (int part = 0; part < QUANT_PARTS; part++)
                            sum[s][i][part] = quant_dot(sum[s][i][part], own[part], both);
                    }
                }
            }
        }
        for (int s = 0; s < side; s++)
            for (int part = 0; part < QUANT_PARTS; part++) {
                const uint16_t *from = scales + s * apart * 2 * QUANT_PANEL + QUANT_LANES * part;
                const quant_floats scale = quant_halves(from), least = quant_halves(from + QUANT_PANEL);
                for (int i = 0; i < count; i++) {
                    const float *own = quant_scales_of(x + i * stride, groups) + g;
                    quant_floats *sums = &total[s][i][part];
                    *sums = quant_fma(quant_times(scale, own[0]), quant_float(sum[s][i][part]), *sums);
                    *sums = quant_fma1(least, own[groups], *sums);
                }
            }
        codes += QUANT_GROUP * QUANT_PANEL / 4;
        scales += 2 * QUANT_PANEL;
    }
    quant_put(count, side, total, y);
}

#define SOME(NAME, COUNT, FETCH)                                                                                       \
    {                                                                                                                  \
        NAME##_some(COUNT, side, FETCH, w, panel, each, x + i * stride, stride, n0, n1, y + (size_t)i * ldy, ldy);     \
        i += (COUNT);                                                                                                  \
    }

/* Panels that outputs n0 to n1 lie in, `side` at a time and then the rest; of each QUANT_MOST rows at a time and then the
   rest. Outputs outside are left alone. */
#define QUANT_ROWS(NAME, CODE, CODES_OF_GROUP, SCALES_OF_GROUP)                                                        \
    QUANT_INLINE void NAME##_some(const int count, const int side, const int fetch, const struct quant *w, int panel,  \
                                  int each, const char *x, size_t stride, int n0, int n1, float *y, int ldy) {         \
        float made[QUANT_SIDE * QUANT_MOST * QUANT_PANEL] __attribute__((aligned(64)));                                \
        const size_t groups = (size_t)quant_groups(w->k), at = panel * groups;                                         \
        NAME##_panels(count, side, fetch, (const CODE *)w->codes + at * (CODES_OF_GROUP),                              \
                      (const uint16_t *)w->scales + at * (SCALES_OF_GROUP), each * groups, x, stride, (int)groups,     \
                      made);                                                                                           \
        for (int s = 0; s < side; s++) {                                                                               \
            const int first = (panel + s * each) * QUANT_PANEL, from = first > n0 ? first : n0;                        \
            const int to = first + QUANT_PANEL < n1 ? first + QUANT_PANEL : n1;                                        \
            for (int i = 0; i < count; i++)                                                                            \
                memcpy(y + (size_t)i * ldy + from, made + (s * count + i) * QUANT_PANEL + from - first,                \
                       (size_t)(to - from) * sizeof(float));                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    QUANT_INLINE void NAME##_side(const int side, const struct quant *w, int panel, int each, const char *x,           \
                                  size_t stride, int m, int n0, int n1, float *y, int ldy) {                           \
        int i = 0;                                                                                                     \
        if (side == 1 && m >= QUANT_MOST) SOME(NAME, QUANT_MOST, 1)                                                    \
        while (side == 1 && i + QUANT_MOST <= m) SOME(NAME, QUANT_MOST, 0)                                             \
        while (side <= 2 && i + 2 <= m) SOME(NAME, 2, 1)                                                               \
        while (i < m) SOME(NAME, 1, 1)                                                                                 \
    }                                                                                                                  \
    static void NAME##_rows(const struct quant *w, const void *x, size_t stride, int m, int n0, int n1, float *y,      \
                            int ldy) {                                                                                 \
        const int end = (n1 + QUANT_PANEL - 1) / QUANT_PANEL, side = m == 1 ? QUANT_SIDE : m < 4 ? 2 : 1;              \
        int panel = n0 / QUANT_PANEL;                                                                                  \
        const int each = n1 > n0 ? (end - panel) / side : 0, until = panel + each;                                     \
        for (; side == QUANT_SIDE && panel < until; panel++)                                                           \
            NAME##_side(QUANT_SIDE, w, panel, each, x, stride, m, n0, n1, y, ldy);                                     \
        for (; side == 2 && panel < until; panel++) NAME##_side(2, w, panel, each, x, stride, m, n0, n1, y, ldy);      \
        for (panel += each * (side - 1); panel < end; panel++)                                                         \
            NAME##_side(1, w, panel, 0, x, stride, m, n0, n1, y, ldy);                                                 \
    }

QUANT_ROWS(q8, int8_t, QUANT_GROUP *QUANT_PANEL, QUANT_PANEL)
QUANT_ROWS(q4, uint16_t, QUANT_GROUP *QUANT_PANEL / 4, 2 * QUANT_PANEL)
#undef QUANT_ROWS
#undef SOME

/* ---- the weights of one group of a panel: values[32 inputs][16 outputs] */

static inline void q8_values(const int8_t *codes, const uint16_t *scales, float *values) {
    for (int part = 0; part < QUANT_PARTS; part++) {
        const quant_floats scale = quant_halves(scales + QUANT_LANES * part);
        for (int pair = 0; pair < QUANT_PAIRS; pair++) {
            const quant_ints w = quant_widen(codes + 32 * pair + 2 * QUANT_LANES * part);
            float *to = values + 2 * pair * QUANT_PANEL + QUANT_LANES * part;
            quant_store(to, quant_fma(scale, quant_even(w), quant_none()));
            quant_store(to + QUANT_PANEL, quant_fma(scale, quant_odd(w), quant_none()));
        }
    }
}

static inline void q4_values(const uint16_t *codes, const uint16_t *scales, float *values) {
    for (int part = 0; part < QUANT_PARTS; part++) {
        const quant_floats scale = quant_halves(scales + QUANT_LANES * part);
        const quant_floats least = quant_halves(scales + QUANT_PANEL + QUANT_LANES * part);
        for (int pair = 0; pair < QUANT_PAIRS; pair++) {
            const quant_ints packed = quant_load(codes + 32 * (pair / 4) + 2 * QUANT_LANES * part);
            float *to = values + 2 * pair * QUANT_PANEL + QUANT_LANES * part;
            quant_ints w; /* the shift is part of an instruction */
            switch (pair % 4) {
                case 0: w = quant_nibble(packed, 0); break;
                case 1: w = quant_nibble(packed, 1); break;
                case 2: w = quant_nibble(packed, 2); break;
                default: w = quant_nibble(packed, 3);
            }
            quant_store(to, quant_fma(scale, quant_even(w), least));
            quant_store(to + QUANT_PANEL, quant_fma(scale, quant_odd(w), least));
        }
    }
}

static inline size_t q8_input_bytes(int k) { return quant_input_bytes(k); }
static inline size_t q4_input_bytes(int k) { return quant_input_bytes(k); }
static inline void q8_input(const float *x, int k, void *out) { quant_input(x, k, out); }
static inline void q4_input(const float *x, int k, void *out) { quant_input(x, k, out); }

#endif
