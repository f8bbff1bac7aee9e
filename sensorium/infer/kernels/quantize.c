/* What quantize.py calls: products with quantised weights, and the weights as numbers, by several threads. */

#include "quant.h"

#include <omp.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

/* y[m][n] = x[m][k] w[n][k], float32; bits: 8 or 4. Returns 0, or 1 where there is no memory. */
EXPORT int quant_product(int bits, const void *codes, const void *scales, int n, int k, const float *x, int m, float *y,
                         int threads) {
    const struct quant w = {codes, scales, n, k};
    const size_t stride = quant_input_bytes(k);
    char *inputs = aligned_alloc(64, stride * (size_t)m);
    if (inputs == NULL) return 1;
    const int panels = (n + QUANT_PANEL - 1) / QUANT_PANEL;
#pragma omp parallel num_threads(threads)
    {
        const int64_t self = omp_get_thread_num(), all = omp_get_num_threads();
        for (int row = (int)self; row < m; row += (int)all)
            quant_input(x + (size_t)row * k, k, inputs + (size_t)row * stride);
#pragma omp barrier
        const int first = (int)(panels * self / all) * QUANT_PANEL, end = (int)(panels * (self + 1) / all) * QUANT_PANEL;
        const int last = end < n ? end : n;
        if (bits == 8)
            q8_rows(&w, inputs, stride, m, first, last, y, n);
        else
            q4_rows(&w, inputs, stride, m, first, last, y, n);
    }
    free(inputs);
    return 0;
}

/* float32 to bfloat16, to the nearest, even where two are; weights are never NaN */
static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* out[k][n1 - n0], the transposed weights of outputs n0 (a multiple of 16) to n1: float32, or bfloat16 where `brief` */
EXPORT void quant_transposed(int bits, const void *codes, const void *scales, int k, int n0, int n1, int brief, void *out,
                             int threads) {
    const int groups = quant_groups(k), width = n1 - n0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int first = n0; first < n1; first += QUANT_PANEL) {
        const int count = n1 - first < QUANT_PANEL ? n1 - first : QUANT_PANEL;
        for (int g = 0; g < groups; g++) {
            const size_t at = (size_t)(first / QUANT_PANEL) * groups + g;
            float values[QUANT_GROUP * QUANT_PANEL] __attribute__((aligned(64)));
            if (bits == 8)
                q8_values((const int8_t *)codes + at * QUANT_GROUP * QUANT_PANEL,
                          (const uint16_t *)scales + at * QUANT_PANEL, values);
            else
                q4_values((const uint16_t *)codes + at * QUANT_GROUP * QUANT_PANEL / 4,
                          (const uint16_t *)scales + at * 2 * QUANT_PANEL, values);
            const int inputs = k - g * QUANT_GROUP < QUANT_GROUP ? k - g * QUANT_GROUP : QUANT_GROUP;
            for (int input = 0; input < inputs; input++) {
                const float *from = values + input * QUANT_PANEL;
                const size_t to = (size_t)(g * QUANT_GROUP + input) * width + (first - n0);
                if (!brief) {
                    memcpy((float *)out + to, from, (size_t)count * sizeof(float));
                    continue;
                }
                uint16_t brief_row[QUANT_PANEL];
                for (int one = 0; one < QUANT_PANEL; one++) brief_row[one] = rounded(from[one]);
                memcpy((uint16_t *)out + to, brief_row, (size_t)count * sizeof(uint16_t));
            }
        }
    }
}

/* ---- which codes, scale and least say 32 numbers best */

/* To half precision, to the nearest, even where two are; too large: infinite. */
static uint16_t half_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size >= 0x47800000) return (uint16_t)(sign | 0x7C00);
    if (size < 0x38800000) return (uint16_t)(sign | (uint32_t)rintf(fabsf(value) * 0x1p24f));
    return (uint16_t)(sign | (size + 0xFFF + (size >> 13 & 1) - (112u << 23)) >> 13);
}

static inline float halved(float value) { return quant_half(half_of(value)); }

enum { LANES = 8 };

static inline float total(const float *lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

struct line {
    float scale, least;
};

/* The nearest codes on a line and their squared error. */
static inline float coded(const float *x, struct line line, float *codes) {
    const float inverse = line.scale > 0 ? 1.0f / line.scale : 0.0f;
    float errors[LANES] = {0};
    for (int at = 0; at < QUANT_GROUP; at += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            float code = rintf((x[at + lane] - line.least) * inverse);
            code = code < 0.0f ? 0.0f : code;
            code = code > 15.0f ? 15.0f : code;
            codes[at + lane] = code;
            const float off = line.scale * code + line.least - x[at + lane];
            errors[lane] += off * off;
        }
    return total(errors);
}

/* The line of the least squared error for given codes, in half precision; where all are the same, as before. */
static inline struct line refitted(const float *x, const float *codes, struct line line) {
    float sums[LANES] = {0}, levels[LANES] = {0}, spreads[LANES] = {0}, slopes[LANES] = {0};
    for (int at = 0; at < QUANT_GROUP; at += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += codes[at + lane], levels[lane] += x[at + lane];
    const float mean = total(sums) / QUANT_GROUP, level = total(levels) / QUANT_GROUP;
    for (int at = 0; at < QUANT_GROUP; at += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const float apart = codes[at + lane] - mean;
            spreads[lane] += apart * apart, slopes[lane] += apart * x[at + lane];
        }
    const float spread = total(spreads);
    if (spread <= 0.0f) return line;
    const float scale = halved(total(slopes) / spread);
    const struct line made = {scale, halved(level - scale * mean)};
    return made;
}

/* codes.py's search, of `count` groups of 32 numbers: from each of `starts` pairs of parts of the range, which are cut off
   below and above, `refits` times codes and their line in turns; the least squared error stays. */
EXPORT void quant_search(const float *groups, int64_t count, const float *cuts, int starts, int refits, uint8_t *codes,
                         uint16_t *scales, uint16_t *leasts, float *errors, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < count; group++) {
        const float *x = groups + group * QUANT_GROUP;
        float low = x[0], high = x[0], best = INFINITY, tried[QUANT_GROUP];
        for (int at = 1; at < QUANT_GROUP; at++) {
            low = x[at] < low ? x[at] : low;
            high = x[at] > high ? x[at] : high;
        }
        struct line kept = {NAN, NAN}; /* where numbers are not finite: no line is better than none */
        for (int start = 0; start < starts; start++) {
            const float range = high - low, below = cuts[2 * start], above = cuts[2 * start + 1];
            struct line line = {halved(range * (1 - below - above) / 15), halved(low + range * below)};
            for (int turn = 0; turn <= refits; turn++) {
                const float error = coded(x, line, tried);
                if (error < best) {
                    best = error, kept = line;
                    for (int at = 0; at < QUANT_GROUP; at++) codes[group * QUANT_GROUP + at] = (uint8_t)tried[at];
                }
                if (error == 0.0f || turn == refits) break;
                line = refitted(x, tried, line);
            }
            if (best == 0.0f) break;
        }
        scales[group] = half_of(kept.scale), leasts[group] = half_of(kept.least), errors[group] = best;
    }
}
