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
   nothing. NAME_values gives the weights of a group. QUANT_PLAIN: plain C although vectors are there. */

#ifndef SENSORIUM_QUANT_H
#define SENSORIUM_QUANT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && !defined(QUANT_PLAIN)
#include <immintrin.h>
#endif

struct quant {
    const void *codes;
    const void *scales;
    int n, k; /* outputs, inputs */
};

/* A sum is added to now: left to itself, gcc makes all products of a group first and keeps them in memory (half the speed
   where there are several rows). */
#define QUANT_NOW(sum) __asm__("" : "+v"(sum))

enum { QUANT_PANEL = 16, QUANT_GROUP = 32, QUANT_PAIRS = 16 };

#define QUANT_INLINE static inline __attribute__((always_inline))

static inline int quant_groups(int k) { return (k + QUANT_GROUP - 1) / QUANT_GROUP; }

/* IEEE half to float, with subnormals */
static inline float quant_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 0) {
        const float tiny = (float)fraction * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- vectors of QUANT_LANES outputs. widen: 2 int16 of each from int8; nibble: 2 int16 of each, of the s-th 4 bits;
   pair: the same 2 int16 for all; dot: a sum of 2 products added to each; even, odd: one of the 2 as float */

#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(QUANT_PLAIN)

enum { QUANT_LANES = 16, QUANT_MOST = 8 };
typedef __m512i quant_ints;
typedef __m512 quant_floats;

QUANT_INLINE quant_ints quant_zeros(void) { return _mm512_setzero_si512(); }
QUANT_INLINE quant_floats quant_none(void) { return _mm512_setzero_ps(); }
QUANT_INLINE quant_ints quant_widen(const int8_t *c) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)c));
}
QUANT_INLINE quant_ints quant_load(const uint16_t *c) { return _mm512_loadu_si512(c); }
QUANT_INLINE quant_ints quant_nibble(quant_ints v, int s) {
    const quant_ints low = s ? _mm512_srli_epi16(v, 4 * s) : v;
    return s == 3 ? low : _mm512_and_si512(low, _mm512_set1_epi16(15));
}
QUANT_INLINE quant_ints quant_pair(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm512_set1_epi32(both);
}
QUANT_INLINE quant_ints quant_dot(quant_ints sum, quant_ints a, quant_ints b) {
    QUANT_NOW(sum);
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
QUANT_INLINE quant_floats quant_halves(const uint16_t *h) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)h));
}
QUANT_INLINE quant_floats quant_float(quant_ints a) { return _mm512_cvtepi32_ps(a); }
QUANT_INLINE quant_floats quant_even(quant_ints a) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a, 16), 16));
}
QUANT_INLINE quant_floats quant_odd(quant_ints a) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(a, 16)); }
QUANT_INLINE quant_floats quant_times(quant_floats a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
QUANT_INLINE quant_floats quant_fma(quant_floats a, quant_floats b, quant_floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
QUANT_INLINE quant_floats quant_fma1(quant_floats a, float b, quant_floats c) {
    return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c);
}
QUANT_INLINE void quant_store(float *y, quant_floats a) { _mm512_storeu_ps(y, a); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(QUANT_PLAIN)

enum { QUANT_LANES = 8, QUANT_MOST = 4 };
typedef __m256i quant_ints;
typedef __m256 quant_floats;

QUANT_INLINE quant_ints quant_zeros(void) { return _mm256_setzero_si256(); }
QUANT_INLINE quant_floats quant_none(void) { return _mm256_setzero_ps(); }
QUANT_INLINE quant_ints quant_widen(const int8_t *c) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)c));
}
QUANT_INLINE quant_ints quant_load(const uint16_t *c) { return _mm256_loadu_si256((const __m256i *)c); }
QUANT_INLINE quant_ints quant_nibble(quant_ints v, int s) {
    const quant_ints low = s ? _mm256_srli_epi16(v, 4 * s) : v;
    return s == 3 ? low : _mm256_and_si256(low, _mm256_set1_epi16(15));
}
QUANT_INLINE quant_ints quant_pair(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm256_set1_epi32(both);
}
QUANT_INLINE quant_ints quant_dot(quant_ints sum, quant_ints a, quant_ints b) {
    QUANT_NOW(sum);
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(sum, a, b);
#elif defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}
QUANT_INLINE quant_floats quant_halves(const uint16_t *h) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h));
}
QUANT_INLINE quant_floats quant_float(quant_ints a) { return _mm256_cvtepi32_ps(a); }
QUANT_INLINE quant_floats quant_even(quant_ints a) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16));
}
QUANT_INLINE quant_floats quant_odd(quant_ints a) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(a, 16)); }
QUANT_INLINE quant_floats quant_times(quant_floats a, float b) { return _mm256_mul_ps(a, _mm256_set1_ps(b)); }
QUANT_INLINE quant_floats quant_fma(quant_floats a, quant_floats b, quant_floats c) {
    return _mm256_fmadd_ps(a, b, c);
}
QUANT_INLINE quant_floats quant_fma1(quant_floats a, float b, quant_floats c) {
    return _mm256_fmadd_ps(a, _mm256_set1_ps(b), c);
}
QUANT_INLINE void quant_store(float *y, quant_floats a) { _mm256_storeu_ps(y, a); }

#else

enum { QUANT_LANES = 8, QUANT_MOST = 2 };
typedef union {
    int32_t v[8];
    int16_t of[16];
} quant_ints;
typedef struct {
    float v[8];
} quant_floats;

#define QUANT_EACH for (int lane = 0; lane < QUANT_LANES; lane++)
QUANT_INLINE quant_ints quant_zeros(void) {
    const quant_ints zeros = {{0}};
    return zeros;
}
QUANT_INLINE quant_floats quant_none(void) {
    const quant_floats zeros = {{0}};
    return zeros;
}
QUANT_INLINE quant_ints quant_widen(const int8_t *c) {
    quant_ints made;
    for (int at = 0; at < 16; at++) made.of[at] = c[at];
    return made;
}
QUANT_INLINE quant_ints quant_load(const uint16_t *c) {
    quant_ints made;
    memcpy(&made, c, sizeof made);
    return made;
}
QUANT_INLINE quant_ints quant_nibble(quant_ints v, int s) {
    for (int at = 0; at < 16; at++) v.of[at] = (int16_t)(((uint16_t)v.of[at] >> 4 * s) & 15);
    return v;
}
QUANT_INLINE quant_ints quant_pair(const int16_t *x) {
    quant_ints made;
    for (int at = 0; at < 16; at++) made.of[at] = x[at & 1];
    return made;
}
QUANT_INLINE quant_ints quant_dot(quant_ints sum, quant_ints a, quant_ints b) {
    QUANT_EACH sum.v[lane] += (int32_t)a.of[2 * lane] * b.of[2 * lane] + (int32_t)a.of[2 * lane + 1] * b.of[2 * lane + 1];
    return sum;
}
QUANT_INLINE quant_floats quant_halves(const uint16_t *h) {
    quant_floats made;
    QUANT_EACH made.v[lane] = quant_half(h[lane]);
    return made;
}
QUANT_INLINE quant_floats quant_float(quant_ints a) {
    quant_floats made;
    QUANT_EACH made.v[lane] = (float)a.v[lane];
    return made;
}
QUANT_INLINE quant_floats quant_even(quant_ints a) {
    quant_floats made;
    QUANT_EACH made.v[lane] = (float)a.of[2 * lane];
    return made;
}
QUANT_INLINE quant_floats quant_odd(quant_ints a) {
    quant_floats made;
    QUANT_EACH made.v[lane] = (float)a.of[2 * lane + 1];
    return made;
}
QUANT_INLINE quant_floats quant_times(quant_floats a, float b) {
    QUANT_EACH a.v[lane] *= b;
    return a;
}
QUANT_INLINE quant_floats quant_fma(quant_floats a, quant_floats b, quant_floats c) {
    QUANT_EACH c.v[lane] += a.v[lane] * b.v[lane];
    return c;
}
QUANT_INLINE quant_floats quant_fma1(quant_floats a, float b, quant_floats c) {
    QUANT_EACH c.v[lane] += a.v[lane] * b;
    return c;
}
QUANT_INLINE void quant_store(float *y, quant_floats a) { memcpy(y, a.v, sizeof a.v); }
#undef QUANT_EACH

#endif

enum { QUANT_PARTS = QUANT_PANEL / QUANT_LANES };

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
        float tops[8] = {0}, top = 0;
        for (int at = 0; at < QUANT_GROUP; at += 8)
            for (int lane = 0; lane < 8; lane++) {
                const float size = fabsf(from[at + lane]);
                tops[lane] = size > tops[lane] ? size : tops[lane];
            }
        for (int lane = 0; lane < 8; lane++) top = tops[lane] > top ? tops[lane] : top;
        const float scale = top / 32767.0f;
        const int32_t sum = quant_group(from, top > 0x1p-100f ? 32767.0f / top : 0.0f, codes + g * QUANT_GROUP);
        scales[g] = scale;
        sums[g] = scale * (float)sum;
    }
}

/* ---- products: `count` rows with one panel of codes, sums of all outputs of the panel in their order */

QUANT_INLINE void q8_panel(const int count, const int8_t *codes, const uint16_t *scales, const char *x, size_t stride,
                           int groups, float *y) {
    quant_floats total[QUANT_MOST][QUANT_PARTS];
    for (int i = 0; i < count; i++)
        for (int part = 0; part < QUANT_PARTS; part++) total[i][part] = quant_none();
    for (int g = 0; g < groups; g++) {
        quant_ints sum[QUANT_MOST][QUANT_PARTS];
        for (int i = 0; i < count; i++)
            for (int part = 0; part < QUANT_PARTS; part++) sum[i][part] = quant_zeros();
#pragma GCC unroll 4
        for (int pair = 0; pair < QUANT_PAIRS; pair++) {
            quant_ints w[QUANT_PARTS];
            for (int part = 0; part < QUANT_PARTS; part++) w[part] = quant_widen(codes + 32 * pair + 16 * part);
            for (int i = 0; i < count; i++) {
                const quant_ints both = quant_pair((const int16_t *)(x + i * stride) + g * QUANT_GROUP + 2 * pair);
                for (int part = 0; part < QUANT_PARTS; part++) sum[i][part] = quant_dot(sum[i][part], w[part], both);
            }
        }
        for (int part = 0; part < QUANT_PARTS; part++) {
            const quant_floats scale = quant_halves(scales + QUANT_LANES * part);
            for (int i = 0; i < count; i++) {
                const float own = quant_scales_of(x + i * stride, groups)[g];
                total[i][part] = quant_fma(quant_times(scale, own), quant_float(sum[i][part]), total[i][part]);
            }
        }
        codes += QUANT_GROUP * QUANT_PANEL;
        scales += QUANT_PANEL;
    }
    for (int i = 0; i < count; i++)
        for (int part = 0; part < QUANT_PARTS; part++)
            quant_store(y + i * QUANT_PANEL + QUANT_LANES * part, total[i][part]);
}

QUANT_INLINE void q4_panel(const int count, const uint16_t *codes, const uint16_t *scales, const char *x, size_t stride,
                           int groups, float *y) {
    quant_floats total[QUANT_MOST][QUANT_PARTS];
    for (int i = 0; i < count; i++)
        for (int part = 0; part < QUANT_PARTS; part++) total[i][part] = quant_none();
    for (int g = 0; g < groups; g++) {
        quant_ints sum[QUANT_MOST][QUANT_PARTS];
        for (int i = 0; i < count; i++)
            for (int part = 0; part < QUANT_PARTS; part++) sum[i][part] = quant_zeros();
#pragma GCC unroll 4
        for (int vector = 0; vector < 4; vector++) {
            quant_ints w[QUANT_PARTS];
            for (int part = 0; part < QUANT_PARTS; part++)
                w[part] = quant_load(codes + 32 * vector + 2 * QUANT_LANES * part);
#pragma GCC unroll 4
            for (int s = 0; s < 4; s++) {
                quant_ints own[QUANT_PARTS];
                for (int part = 0; part < QUANT_PARTS; part++) own[part] = quant_nibble(w[part], s);
                for (int i = 0; i < count; i++) {
                    const int16_t *from = (const int16_t *)(x + i * stride) + g * QUANT_GROUP + 8 * vector + 2 * s;
                    const quant_ints both = quant_pair(from);
                    for (int part = 0; part < QUANT_PARTS; part++)
                        sum[i][part] = quant_dot(sum[i][part], own[part], both);
                }
            }
        }
        for (int part = 0; part < QUANT_PARTS; part++) {
            const quant_floats scale = quant_halves(scales + QUANT_LANES * part);
            const quant_floats least = quant_halves(scales + QUANT_PANEL + QUANT_LANES * part);
            for (int i = 0; i < count; i++) {
                const float *own = quant_scales_of(x + i * stride, groups) + g;
                total[i][part] = quant_fma(quant_times(scale, own[0]), quant_float(sum[i][part]), total[i][part]);
                total[i][part] = quant_fma1(least, own[groups], total[i][part]);
            }
        }
        codes += QUANT_GROUP * QUANT_PANEL / 4;
        scales += 2 * QUANT_PANEL;
    }
    for (int i = 0; i < count; i++)
        for (int part = 0; part < QUANT_PARTS; part++)
            quant_store(y + i * QUANT_PANEL + QUANT_LANES * part, total[i][part]);
}

/* Panels that outputs n0 to n1 lie in, QUANT_MOST rows at a time and then the rest; outputs outside are left alone. */
#define QUANT_ROWS(NAME, CODE, CODES_OF_GROUP, SCALES_OF_GROUP)                                                         \
    static void NAME##_rows(const struct quant *w, const void *x, size_t stride, int m, int n0, int n1, float *y,      \
                            int ldy) {                                                                                 \
        const int groups = quant_groups(w->k);                                                                         \
        for (int first = n0 - n0 % QUANT_PANEL; first < n1; first += QUANT_PANEL) {                                    \
            const size_t at = (size_t)(first / QUANT_PANEL) * groups;                                                  \
            const CODE *codes = (const CODE *)w->codes + at * (CODES_OF_GROUP);                                        \
            const uint16_t *scales = (const uint16_t *)w->scales + at * (SCALES_OF_GROUP);                             \
            const int from = first > n0 ? first : n0, to = first + QUANT_PANEL < n1 ? first + QUANT_PANEL : n1;        \
            for (int i = 0; i < m;) {                                                                                  \
                float made[QUANT_MOST * QUANT_PANEL] __attribute__((aligned(64)));                                     \
                const char *row = (const char *)x + i * stride;                                                        \
                int count = 1;                                                                                         \
                if (m - i >= QUANT_MOST) {                                                                             \
                    count = QUANT_MOST;                                                                                \
                    NAME##_panel(QUANT_MOST, codes, scales, row, stride, groups, made);                                \
                } else if (m - i >= 2) {                                                                               \
                    count = 2;                                                                                         \
                    NAME##_panel(2, codes, scales, row, stride, groups, made);                                         \
                } else {                                                                                               \
                    NAME##_panel(1, codes, scales, row, stride, groups, made);                                         \
                }                                                                                                      \
                for (int one = 0; one < count; one++, i++)                                                             \
                    memcpy(y + (size_t)i * ldy + from, made + one * QUANT_PANEL + from - first,                        \
                           (size_t)(to - from) * sizeof(float));                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }

QUANT_ROWS(q8, int8_t, QUANT_GROUP *QUANT_PANEL, QUANT_PANEL)
QUANT_ROWS(q4, uint16_t, QUANT_GROUP *QUANT_PANEL / 4, 2 * QUANT_PANEL)
#undef QUANT_ROWS

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
