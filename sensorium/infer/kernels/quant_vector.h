/* What quant.h computes with: vectors of QUANT_LANES outputs, of AVX-512, of AVX2, or of plain C for any other CPU (and,
   with QUANT_PLAIN, for these, as what the others are held against). Integers are the same in all of them; floats are
   where the CPU fuses products and sums. */

#ifndef SENSORIUM_QUANT_VECTOR_H
#define SENSORIUM_QUANT_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && !defined(QUANT_PLAIN)
#include <immintrin.h>
#endif

#define QUANT_INLINE static inline __attribute__((always_inline))

/* A sum is added to now: left to itself, gcc makes all products of a group first and keeps them in memory (half the speed
   where there are several rows). */
#define QUANT_NOW(sum) __asm__("" : "+v"(sum))

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

#endif
