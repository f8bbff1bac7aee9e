/* Vectors of the width this CPU has, in the extension that gcc and clang share, so that one source serves x86 and ARM.

Sums over lanes have one fixed order: a number never depends on how many rows are computed together. */
#ifndef SENSORIUM_VECTOR_H
#define SENSORIUM_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bfloat16 is read in pairs, lower half first: a big-endian CPU needs its own kernels"
#endif

#if defined(__AVX512F__) || defined(SENSORIUM_WIDE)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t vq __attribute__((vector_size(16)));
typedef float vf_loose __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint32_t vu_loose __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint16_t vh_loose __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

enum { FLOAT32 = 0, BFLOAT16 = 1 }; /* of what is stored; the quantised kinds of weights follow in linear.h */

INLINE vf load(const float *p) { return *(const vf_loose *)p; }
INLINE void store(float *p, vf x) { *(vf_loose *)p = x; }
/* sum + a * b. Said by an instruction where there is one: left to itself, gcc multiplies and adds in some loops and
does both at once in others, and sums would depend on the number of rows. */
INLINE vf add_product(vf sum, vf a, vf b) {
#if LANES == 16 && defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif LANES == 8 && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif LANES == 4 && defined(__ARM_NEON) && defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return sum + a * b;
#endif
}
INLINE vf all(float x) { return x - (vf){0}; }
INLINE vf choose(vi yes, vf a, vf b) { return (vf)(((vi)a & yes) | ((vi)b & ~yes)); }
/* b where one of them is no number. */
INLINE vf larger(vf a, vf b) {
#if LANES == 16 && defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8 && defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}
INLINE vf smaller(vf a, vf b) {
#if LANES == 16 && defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8 && defined(__AVX__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

/* The first `count` numbers at p, zeros behind them. */
INLINE vf load_some(const float *p, int count) {
    if (count >= LANES) return load(p);
    float some[LANES] = {0};
    memcpy(some, p, sizeof(float) * (size_t)count);
    return load(some);
}
INLINE void store_some(float *p, vf x, int count) {
    if (count >= LANES) {
        store(p, x);
        return;
    }
    float some[LANES];
    store(some, x);
    memcpy(p, some, sizeof(float) * (size_t)count);
}

#if defined(__clang__) || __GNUC__ >= 12
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (vq){i, j, k, l})
#endif
INLINE quad folded(vf x) {
    quad part[LANES / 4];
    memcpy(part, &x, sizeof part);
#if LANES == 8
    return part[0] + part[1];
#elif LANES == 16
    return (part[0] + part[1]) + (part[2] + part[3]);
#else
    return part[0];
#endif
}
/* Four totals at once, each as `total` makes it. */
INLINE quad totals(vf w, vf x, vf y, vf z) {
    quad a = folded(w), b = folded(x), c = folded(y), d = folded(z);
    quad first = MIX(a, b, 0, 4, 1, 5) + MIX(a, b, 2, 6, 3, 7), second = MIX(c, d, 0, 4, 1, 5) + MIX(c, d, 2, 6, 3, 7);
    return MIX(first, second, 0, 1, 4, 5) + MIX(first, second, 2, 3, 6, 7);
}
INLINE float total(vf x) {
    quad sum = folded(x);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
INLINE float highest(vf x) {
    quad part[LANES / 4];
    memcpy(part, &x, sizeof part);
    for (int lanes = 1; lanes < LANES / 4; lanes++) {
        const vq more = part[lanes] > part[0];
        part[0] = (quad)(((vq)part[lanes] & more) | ((vq)part[0] & ~more));
    }
    float most = part[0][0];
    for (int lane = 1; lane < 4; lane++) most = part[0][lane] > most ? part[0][lane] : most;
    return most;
}

INLINE float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
/* To the nearest, ties to even; numbers alone, as nothing here makes a NaN of its own. */
INLINE vu bf16_bits(vf x) {
    vu bits = (vu)x;
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}
INLINE vf round_bf16(vf x) { return (vf)bf16_bits(x); }
INLINE vf load_bf16(const uint16_t *p) {
    vh half = *(const vh_loose *)p;
    return (vf)(__builtin_convertvector(half, vu) << 16);
}
INLINE vf load_bf16_some(const uint16_t *p, int count) {
    if (count >= LANES) return load_bf16(p);
    uint16_t some[LANES] = {0};
    memcpy(some, p, 2 * (size_t)count);
    return load_bf16(some);
}
INLINE void store_bf16_some(uint16_t *p, vf x, int count) {
    const vh half = __builtin_convertvector(bf16_bits(x) >> 16, vh);
    if (count >= LANES) *(vh_loose *)p = half;
    else memcpy(p, &half, 2 * (size_t)count);
}

/* Up to LANES numbers of either type from the index on. */
INLINE vf load_typed(const void *p, int type, size_t index, int count) {
    if (type == BFLOAT16) return load_bf16_some((const uint16_t *)p + index, count);
    return load_some((const float *)p + index, count);
}

/* e^x, about 1 unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. A number to which 1.5 * 2^23 is
added has no room for its fraction: its last bits are n. Below -87.7, where n is -127, it is 0. */
INLINE vf exponential(vf x) {
    x = smaller(larger(x, all(-88.0f)), all(88.0f));
    const vf rounded = add_product(all(12582912.0f), x, all(1.44269504f)), whole = rounded - 12582912.0f;
    vf r = add_product(add_product(x, whole, all(-0.693359375f)), whole, all(2.12194440e-4f));
    vf y = add_product(all(1.0f / 720), r, all(1.0f / 5040));
    y = add_product(all(1.0f / 120), r, y);
    y = add_product(all(1.0f / 24), r, y);
    y = add_product(all(1.0f / 6), r, y);
    y = add_product(all(0.5f), r, y);
    y = add_product(all(1.0f), r, y);
    y = add_product(all(1.0f), r, y);
    return y * (vf)(((vi)rounded << 23) + (127 << 23));
}
INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }
/* Near zero the odd Taylor series, where 1 - 2 / (e^2x + 1) would cancel. */
INLINE vf hyperbolic_tangent(vf x) {
    vf s = x * x;
    vf rest = -17.0f / 315 + s * (62.0f / 2835 + s * (-1382.0f / 155925));
    vf series = x + x * s * (-1.0f / 3 + s * (2.0f / 15 + s * rest));
    return choose(s < 0.09f, series, 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f));
}
/* 1 - erf(|x|), Abramowitz and Stegun 1964, 7.1.26: within 1.5e-7. */
INLINE vf error_complement(vf x) {
    vf size = (vf)((vi)x & 0x7fffffff);
    vf t = 1.0f / (1.0f + 0.3275911f * size);
    vf series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return series * exponential(-size * size);
}

#endif
